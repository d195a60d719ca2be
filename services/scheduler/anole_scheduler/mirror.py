"""Shows workers and adapters in the store, beside the loop that decides."""

import asyncio
import logging
from dataclasses import dataclass
from typing import assert_never

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.commands import (
    ForgetAdapter,
    ForgetWorker,
    RecordAdapter,
    RecordCommand,
    RecordWorker,
)
from anole_scheduler.translate import adapter_of, adapter_record_of, worker_record_of
from anole_shared.codec import decode_record, encode
from anole_shared.errors import MessageError, StoreUnavailable
from anole_shared.keys import LEASE_S, Collection
from anole_shared.lifecycle import pause
from anole_shared.messages import AdapterRecord
from anole_shared.store import Store

log = logging.getLogger(__name__)

_ANSWER_S = 2.0
_RETRY_S = 1.0
_LOAD_ATTEMPTS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    record: bytes | None
    """None deletes."""
    ttl_s: float | None = None


class Mirror:
    """The latest state of each record, written as soon as the store takes it.

    A store that is away delays nobody: only the newest write of each record is kept for it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[tuple[Collection, str], _Write] = {}
        self._wake = asyncio.Event()
        self._is_away = False

    async def load(self, stop: asyncio.Event) -> list[Adapter]:
        """The adapters that an earlier scheduler has recorded; none where the store is away.

        Without them all is learnt again from the workers, which tell of their adapters by and by.
        """
        for _ in range(_LOAD_ATTEMPTS):
            try:
                async with asyncio.timeout(_ANSWER_S):
                    records = await self._store.all(Collection.ADAPTERS)
            except (StoreUnavailable, TimeoutError) as fault:
                self._note_away(fault)
                await pause(stop, _RETRY_S)
                continue
            return [adapter for body in records.values() if (adapter := _decode(body))]
        return []

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

    def _put(
        self,
        collection: Collection,
        record_id: str,
        record: bytes | None,
        *,
        ttl_s: float | None = None,
    ) -> None:
        self._pending[collection, record_id] = _Write(record=record, ttl_s=ttl_s)
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
        """Write all that is pending; whether the store took it."""
        while self._pending:
            key, write = next(iter(self._pending.items()))
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await self._write(*key, write)
            except (StoreUnavailable, TimeoutError) as fault:
                self._note_away(fault)
                return False
            if self._pending.get(key) is write:
                del self._pending[key]
        if self._is_away:
            self._is_away = False
            log.info("the store answers again")
        return True

    async def _write(self, collection: Collection, record_id: str, write: _Write) -> None:
        if write.record is None:
            await self._store.delete(collection, record_id)
        else:
            await self._store.put(collection, record_id, write.record, ttl_s=write.ttl_s)

    def _note_away(self, fault: Exception) -> None:
        if not self._is_away:
            reason = str(fault) or f"no answer within {_ANSWER_S:.0f} s"
            log.warning("the store is away, trying on: %s", reason)
        self._is_away = True


def _decode(body: bytes) -> Adapter | None:
    try:
        return adapter_of(decode_record(AdapterRecord, body))
    except MessageError as fault:
        log.warning("an adapter's record is skipped, a worker will tell again: %s", fault)
        return None
