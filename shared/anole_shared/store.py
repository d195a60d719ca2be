"""What must be read by many or survive a restart: the contract that both implementations keep.

`store_memory` runs inside one process; `store_redis` is Redis. One test suite checks both.
"""

from collections.abc import Mapping
from typing import Protocol

from anole_shared.keys import Collection


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

    async def ping(self) -> None:
        """Return if the store answers."""
        ...

    async def close(self) -> None:
        """Let go of all connections; idempotent."""
        ...
