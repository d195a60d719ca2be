"""Shows workers and adapters in the store, beside the loop that decides; reads them at a start."""

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice
from typing import TypeVar, assert_never

from anole_scheduler.core.commands import (
    ForgetAdapter,
    ForgetWorker,
    RecordAdapter,
    RecordCommand,
    RecordWorker,
)
from anole_scheduler.core.events import Recalled
from anole_scheduler.translate import (
    adapter_of,
    adapter_record_of,
    seen_of,
    worker_record_of,
)
from anole_shared.codec import decode_record, encode
from anole_shared.errors import MessageError, StoreUnavailable
from anole_shared.keys import LEASE_S, Collection, Role
from anole_shared.messages import AdapterRecord, SchedulerRecord, WorkerRecord
from anole_shared.store import Change, Store

log = logging.getLogger(__name__)

_ANSWER_S = 2.0
_RETRY_S = 1.0
_BATCH = 256

RecordT = TypeVar("RecordT")


class Mirror:
    """The latest state of each record, written as soon as the store takes it.

    A store that is away delays nobody: only the newest write of each record is kept for it. What
    is pending is written together, so that readers see no state that never was.
    """

    def __init__(self, store: Store) -> None:
        self.is_deposed = False
        """Whether another scheduler has taken over; nothing is written from then on."""
        self.has_taken_over = False
        """Whether the broker has begun to serve this scheduler."""
        self._store = store
        self._term: int | None = None
        self._pending: dict[tuple[Collection, str], Change] = {}
        self._wake = asyncio.Event()
        self._is_away = False

    async def take_over(self) -> Recalled:
        """Begin to write in the place of the scheduler before; what it has left.

        Nothing where the store is away: all is learnt from the workers then, who tell of their
        adapters by and by.
        """
        self.has_taken_over = True
        try:
            async with asyncio.timeout(_ANSWER_S):
                self._term = await self._store.claim(Role.SCHEDULER)
                adapters = await self._store.all(Collection.ADAPTERS)
                workers = await self._store.all(Collection.WORKERS)
        except (StoreUnavailable, TimeoutError) as fault:
            self._note_away(fault)
            return Recalled(adapters=(), workers=())
        return Recalled(
            adapters=tuple(map(adapter_of, _decoded(AdapterRecord, adapters.values()))),
            workers=tuple(map(seen_of, _decoded(WorkerRecord, workers.values()))),
        )

    def apply(self, command: RecordCommand) -> None:
        """Have it written soon."""
        match command:
            case RecordWorker():
                if command.is_new:
                    log.info("worker %s has joined: %s", command.worker_id, command.capacity)
                record = encode(worker_record_of(command))
                self._put(Collection.WORKERS, command.worker_id, record, ttl_s=LEASE_S)
            case ForgetWorker():
                log.warning("worker %s is gone: %s", command.worker_id, command.reason)
                self._put(Collection.WORKERS, command.worker_id, None)
            case RecordAdapter(adapter=adapter):
                record = encode(adapter_record_of(adapter))
                self._put(Collection.ADAPTERS, adapter.adapter_id, record)
            case ForgetAdapter():
                log.info("adapter %s is forgotten: %s", command.adapter_id, command.reason)
                self._put(Collection.ADAPTERS, command.adapter_id, None)
            case _:
                assert_never(command)

    def show(self, record: SchedulerRecord) -> None:
        """Have this scheduler's own figures written soon."""
        self._put(Collection.SCHEDULERS, record.scheduler_id, encode(record), ttl_s=LEASE_S)

    def _put(
        self,
        collection: Collection,
        record_id: str,
        record: bytes | None,
        *,
        ttl_s: float | None = None,
    ) -> None:
        self._pending[collection, record_id] = Change(
            collection=collection, record_id=record_id, record=record, ttl_s=ttl_s
        )
        self._wake.set()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(_RETRY_S)
                self._wake.set()

    async def flush(self) -> bool:
        """Write all that is pending; whether the store took it, or wants nothing more of us."""
        while self._pending and not self.is_deposed:
            batch = list(islice(self._pending.items(), _BATCH))
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await self._write([change for _, change in batch])
            except (StoreUnavailable, TimeoutError) as fault:
                self._note_away(fault)
                return False
            for key, change in batch:
                if self._pending.get(key) is change:
                    del self._pending[key]
        if self._is_away:
            self._is_away = False
            log.info("the store answers again")
        return True

    async def _write(self, changes: list[Change]) -> None:
        if self._term is None:
            self._term = await self._store.claim(Role.SCHEDULER)
        if not await self._store.write(changes, Role.SCHEDULER, self._term):
            self.is_deposed = True

    def _note_away(self, fault: Exception) -> None:
        if not self._is_away:
            reason = str(fault) or f"no answer within {_ANSWER_S:.0f} s"
            log.warning("the store is away, trying on: %s", reason)
        self._is_away = True


def _decoded(record_type: type[RecordT], bodies: Iterable[bytes]) -> Iterable[RecordT]:
    for body in bodies:
        try:
            yield decode_record(record_type, body)
        except MessageError as fault:
            log.warning("a record is skipped, a worker will tell again: %s", fault)
