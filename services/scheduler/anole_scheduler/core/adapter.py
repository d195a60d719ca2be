"""What is known of an adapter, whichever worker has it."""

from dataclasses import dataclass

from anole_shared.ids import AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter as a worker found it."""

    adapter_id: AdapterId
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    generation: str
    """Hash of its content."""
    refused: str | None = None
    """Why it cannot be served, if it cannot."""
