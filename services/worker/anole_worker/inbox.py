"""What the worker hears, and what it reports of itself."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from anole_shared.bus import Delivery
from anole_shared.errors import ConfigurationError
from anole_shared.ids import AdapterId, WorkerId
from anole_shared.messages import (
    AdapterPrefetchRequested,
    AdaptersDiscovered,
    SequenceAborted,
    SequenceAdmitted,
    WorkerCapacity,
    WorkerDrainRequested,
    WorkerReported,
)
from anole_shared.topology import SCHEDULER
from anole_worker.catalog import Catalog
from anole_worker.core.adapter import Adapter
from anole_worker.core.residency import Residency
from anole_worker.errors import UnknownAdapter
from anole_worker.loop import EngineLoop
from anole_worker.outbox import Outbox
from anole_worker.translate import sequence_of

log = logging.getLogger(__name__)

_ANNOUNCE_EVERY = 30
"""Reports between two announcements of the adapters, for a scheduler that has lost its registry."""


class Inbox:
    """Turns messages into calls on the engine loop, and the engine's state into reports."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        model: str,
        capacity: WorkerCapacity,
        catalog: Catalog,
        loop: EngineLoop,
        outbox: Outbox,
        files_thread: Executor,
        host_adapters: Callable[[], tuple[AdapterId, ...]] = tuple,
    ) -> None:
        """files_thread: for looking at adapters' files. host_adapters: copies in host memory."""
        self._host_adapters = host_adapters
        self._worker_id = worker_id
        self._model = model
        self._capacity = capacity
        self._catalog = catalog
        self._loop = loop
        self._outbox = outbox
        self._files_thread = files_thread
        self._is_draining = False
        self.drain_requested = asyncio.Event()
        """An operator wants this worker to leave."""

    async def receive(self, delivery: Delivery) -> None:
        """Act on one message."""
        message = delivery.message
        match message:
            case SequenceAdmitted():
                await self._admit(message, delivery)
            case SequenceAborted():
                await self._loop.abort(message.request_id)
            case AdapterPrefetchRequested():
                await self._loop.prefetch(message.adapter_id, delivery.headers)
            case WorkerDrainRequested():
                log.info("an operator has this worker leave")
                self.drain_requested.set()
            case _:
                log.error("a worker does not take %s", message.type)
        await delivery.ack()

    async def _admit(self, message: SequenceAdmitted, delivery: Delivery) -> None:
        """Give the sequence to the engine, with its adapter as it is on disk at this moment."""
        now = self._loop.clock.now()
        # A second copy of what runs here would else run twice, here and elsewhere.
        if self._is_draining and message.request_id not in self._loop.engine:
            await self._loop.tell_returned(message.request_id, message.attempt)
            return
        try:
            adapter = await self._adapter_of(message)
        except UnknownAdapter as fault:
            await self._loop.refuse(sequence_of(message, None, now), str(fault), delivery.headers)
            return
        await self._loop.admit(sequence_of(message, adapter, now), delivery.headers)

    async def _adapter_of(self, message: SequenceAdmitted) -> Adapter | None:
        if message.adapter_id is None:
            return None
        before = self._catalog.known(message.adapter_id)
        run_in = asyncio.get_running_loop().run_in_executor
        found = await run_in(self._files_thread, self._catalog.find, message.adapter_id)
        if before is not None and before.adapter != found.adapter:
            self._loop.engine.retire(before.adapter)
        return found.adapter

    async def drain(self, within_s: float) -> None:
        """Take nothing more, give back what has not begun, and let the rest end."""
        self._is_draining = True
        await self._outbox.put(SCHEDULER, self._report())
        await self._loop.give_back()
        try:
            async with asyncio.timeout(within_s):
                await self._loop.idle()
        except TimeoutError:
            left = len(self._loop.engine.sequences)
            log.warning(
                "%d sequences have not ended in %.0f s; they go on elsewhere", left, within_s
            )

    async def scan_every(self, seconds: float) -> None:
        """Look through the adapter folder for ever."""
        run_in = asyncio.get_running_loop().run_in_executor
        while True:
            await asyncio.sleep(seconds)
            try:
                await run_in(self._files_thread, self._catalog.scan)
            except ConfigurationError as fault:
                log.error("%s", fault)

    async def report_every(self, seconds: float) -> None:
        """Report for ever; the first time at once.

        While the last report still waits for the broker none is added: they would fill the line.
        """
        count = last = 0
        announced: int | None = None
        while True:
            if self._outbox.has_handed_over(last):
                version = self._catalog.version
                if count % _ANNOUNCE_EVERY == 0 or version != announced:
                    announced = version
                    await self._outbox.put(SCHEDULER, self._announcement())
                last = await self._outbox.put(SCHEDULER, self._report())
                count += 1
            await asyncio.sleep(seconds)

    def _announcement(self) -> AdaptersDiscovered:
        return AdaptersDiscovered(worker_id=self._worker_id, adapters=self._catalog.records())

    def _report(self) -> WorkerReported:
        engine = self._loop.engine
        blocks = engine.memory.blocks
        resident, loading = (self._adapters(r) for r in (Residency.RESIDENT, Residency.LOADING))
        return WorkerReported(
            worker_id=self._worker_id,
            model=self._model,
            capacity=self._capacity,
            running=tuple(sequence.request_id for sequence in engine.sequences),
            num_free_blocks=blocks.num_blocks - blocks.num_owned,
            resident=resident,
            loading=loading,
            host=tuple(sorted({*self._host_adapters()} - {*resident, *loading})),
            draining=self._is_draining,
        )

    def _adapters(self, residency: Residency) -> tuple[AdapterId, ...]:
        found = self._loop.engine.memory.adapters.adapters(residency)
        return tuple(sorted({adapter.adapter_id for adapter in found}))
