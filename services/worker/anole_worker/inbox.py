"""What the worker hears, and what it reports of itself."""

import asyncio
import logging

from anole_shared.bus import Delivery
from anole_shared.ids import WorkerId
from anole_shared.messages import (
    AdapterPrefetchRequested,
    AdaptersDiscovered,
    SequenceAborted,
    SequenceAdmitted,
    WorkerCapacity,
    WorkerReported,
)
from anole_shared.topology import SCHEDULER
from anole_worker.adapter_files import AdapterFile
from anole_worker.loop import EngineLoop
from anole_worker.outbox import Outbox
from anole_worker.translate import record_of, refused_record, sequence_of

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
        files: list[AdapterFile],
        refused: list[tuple[str, str]],
        loop: EngineLoop,
        outbox: Outbox,
    ) -> None:
        self._worker_id = worker_id
        self._model = model
        self._capacity = capacity
        self._loop = loop
        self._outbox = outbox
        records = [record_of(file) for file in files]
        records += [refused_record(name, reason) for name, reason in refused]
        self._announcement = AdaptersDiscovered(worker_id=worker_id, adapters=tuple(records))

    async def receive(self, delivery: Delivery) -> None:
        """Act on one message."""
        message = delivery.message
        match message:
            case SequenceAdmitted():
                now = self._loop.clock.now()
                await self._loop.admit(sequence_of(message, now), delivery.headers)
            case SequenceAborted():
                await self._loop.abort(message.request_id)
            case AdapterPrefetchRequested():
                self._loop.prefetch(message.adapter_id)
            case _:
                log.error("a worker does not take %s", message.type)
        await delivery.ack()

    async def report_every(self, seconds: float) -> None:
        """Report for ever; the first time at once.

        While the last report still waits for the broker none is added: they would fill the line.
        """
        count = last = 0
        while True:
            if self._outbox.has_handed_over(last):
                if count % _ANNOUNCE_EVERY == 0:
                    await self._outbox.put(SCHEDULER, self._announcement)
                last = await self._outbox.put(SCHEDULER, self._report())
                count += 1
            await asyncio.sleep(seconds)

    def _report(self) -> WorkerReported:
        engine = self._loop.engine
        return WorkerReported(
            worker_id=self._worker_id,
            model=self._model,
            capacity=self._capacity,
            running=tuple(sequence.request_id for sequence in engine.sequences),
            num_free_blocks=engine.blocks.num_free,
            resident=engine.adapters.resident(),
        )
