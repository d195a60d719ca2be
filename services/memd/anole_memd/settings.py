"""memd's settings."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_memd.backends import meminfo
from anole_shared.settings import Settings


def _half_of_memory() -> int:
    return meminfo.total_bytes() // 2


class MemdSettings(Settings):
    """What memd is told beyond the common settings."""

    model_config = SettingsConfigDict(env_prefix="ANOLE_MEMD_", frozen=True, extra="forbid")

    budget_bytes: int = Field(
        default_factory=_half_of_memory,
        gt=0,
        description="Most bytes that are leased at once. Unset: half of the host's memory.",
    )
    max_connections: int = Field(
        default=64, gt=0, le=4096, description="Most workers (and status calls) connected at once."
    )
    max_leases_per_connection: int = Field(
        default=4096, gt=0, description="Most regions that one worker holds at once."
    )
