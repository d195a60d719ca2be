"""The store inside one process: for a deployment without Redis, and for tests."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from anole_shared.clock import Clock
from anole_shared.errors import StoreUnavailable
from anole_shared.keys import Collection, Role
from anole_shared.store import MAX_CHANGES, Change


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    record: bytes
    lapses_at: float
    """On the clock's now()."""


class MemoryStore:
    """Dictionaries, and a clock by which records lapse."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._collections: defaultdict[Collection, dict[str, _Entry]] = defaultdict(dict)
        self._terms: defaultdict[Role, int] = defaultdict(int)
        self._is_closed = False

    async def put(
        self, collection: Collection, record_id: str, record: bytes, *, ttl_s: float | None = None
    ) -> None:
        lapses_at = inf if ttl_s is None else self._clock.now() + ttl_s
        self._live(collection)[record_id] = _Entry(record=record, lapses_at=lapses_at)

    async def get(self, collection: Collection, record_id: str) -> bytes | None:
        entry = self._live(collection).get(record_id)
        return entry.record if entry else None

    async def all(self, collection: Collection) -> Mapping[str, bytes]:
        return {record_id: entry.record for record_id, entry in self._live(collection).items()}

    async def delete(self, collection: Collection, record_id: str) -> None:
        self._live(collection).pop(record_id, None)

    async def claim(self, role: Role) -> int:
        self._check_open()
        self._terms[role] = max(self._terms[role] + 1, int(self._clock.wall() * 1000))
        return self._terms[role]

    async def write(self, changes: Sequence[Change], role: Role, term: int) -> bool:
        assert len(changes) <= MAX_CHANGES
        self._check_open()
        if self._terms[role] > term:
            return False
        for change in changes:
            if change.record is None:
                await self.delete(change.collection, change.record_id)
            else:
                await self.put(
                    change.collection, change.record_id, change.record, ttl_s=change.ttl_s
                )
        return True

    async def ping(self) -> None:
        self._check_open()

    async def close(self) -> None:
        self._is_closed = True

    def _live(self, collection: Collection) -> dict[str, _Entry]:
        """The collection's entries, after the lapsed ones are gone."""
        self._check_open()
        entries, now = self._collections[collection], self._clock.now()
        for record_id in [key for key, entry in entries.items() if entry.lapses_at <= now]:
            del entries[record_id]
        return entries

    def _check_open(self) -> None:
        if self._is_closed:
            raise StoreUnavailable("the store is closed: this process is stopping")
