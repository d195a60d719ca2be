"""What must be read by many or survive a restart: the contract that both implementations keep.

`store_memory` runs inside one process; `store_redis` is Redis. One test suite checks both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from anole_shared.keys import Collection, Role

MAX_CHANGES = 1024
"""Changes in one write(): Redis serves nobody else while it makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One record to be written, or removed."""

    collection: Collection
    record_id: str
    record: bytes | None
    """None removes it."""
    ttl_s: float | None = None


class Store(Protocol):
    """Records by collection and id. All calls raise StoreUnavailable where there is no answer."""

    async def put(
        self, collection: Collection, record_id: str, record: bytes, *, ttl_s: float | None = None
    ) -> None:
        """Write a record, replacing the one there; with ttl_s it vanishes that much later."""
        ...

    async def get(self, collection: Collection, record_id: str) -> bytes | None:
        """The record, or None where there is none (or it has lapsed)."""
        ...

    async def all(self, collection: Collection) -> Mapping[str, bytes]:
        """Every record that has not lapsed, by id."""
        ...

    async def delete(self, collection: Collection, record_id: str) -> None:
        """Remove the record; nothing if it is not there."""
        ...

    async def claim(self, role: Role) -> int:
        """Begin a term of the role; its number is higher than that of any term before."""
        ...

    async def write(self, changes: Sequence[Change], role: Role, term: int) -> bool:
        """Make all changes at once: no reader sees some of them without the others.

        False, and nothing is changed, where a later term of the role has begun: whoever held the
        role before cannot overwrite what its successor has written. At most MAX_CHANGES.
        """
        ...

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def close(self) -> None:
        """Let go of all connections; idempotent."""
        ...
