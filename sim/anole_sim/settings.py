"""The simulator's settings."""

from pathlib import Path

from pydantic import Field

from anole_shared.settings import Settings


class SimSettings(Settings):
    """Where traces are."""

    traces: Path | None = Field(
        default=None,
        description="Folder of production traces for `anole sim` (docs/simulation.md says where "
        "to get them). Unset: lengths are drawn from lognormals fitted to each.",
    )
