"""What the core knows of an adapter."""

from dataclasses import dataclass

from anole_shared.ids import AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One content of an adapter. Replaced in place it is another one, so nothing of it is mixed up.

    It is the key of all that belongs to it: its weights in memory, and the keys and values that
    were computed with it.
    """

    adapter_id: AdapterId
    generation: str
    """Changes with the content."""
    num_bytes: int
    """Memory that its weights take once loaded."""
    rank: int
    """The largest of its modules' ranks."""
