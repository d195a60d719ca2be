"""Carries out loads and drops of adapters, one after the other, beside the steps."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from anole_shared import messages
from anole_shared.clock import Clock
from anole_shared.errors import AnoleError
from anole_shared.ids import AdapterId, WorkerId
from anole_shared.messages import AdapterResidencyChanged
from anole_shared.telemetry import Attribute, SpanName, context_of, headers_of
from anole_shared.topology import SCHEDULER
from anole_worker.adapter_files import AdapterFile
from anole_worker.catalog import Catalog
from anole_worker.core.adapter import Adapter
from anole_worker.core.engine import Engine
from anole_worker.core.loading import LoadAdapter
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Sequence
from anole_worker.errors import DeviceMemoryFull, UnknownAdapter
from anole_worker.leases import LeaseRefused
from anole_worker.outbox import Outbox

log = logging.getLogger(__name__)

GiveUp = Callable[[list[Sequence], str], Awaitable[None]]


class LoadDevice(Protocol):
    """What the loader needs of the device; blocking calls on the loader's thread, but for compact.

    That one is the engine's thread's: no step runs meanwhile.
    """

    def check_memory(self) -> None: ...

    def load_adapter(
        self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]
    ) -> None: ...

    def drop_adapter(self, adapter: Adapter) -> None: ...

    def spare(self, num_bytes: int) -> int | None: ...

    def compact(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Drop:
    adapters: tuple[Adapter, ...]
    done: "asyncio.Future[None] | None" = None


class Loader:
    """A line of loads and drops. Steps go on meanwhile; whoever needs the adapter waits."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        engine: Engine,
        device: LoadDevice,
        catalog: Catalog,
        outbox: Outbox,
        clock: Clock,
        tracer: Tracer,
        thread: Executor,
        engine_thread: Executor,
    ) -> None:
        self._worker_id = worker_id
        self._engine = engine
        self._device = device
        self._catalog = catalog
        self._outbox = outbox
        self._clock = clock
        self._tracer = tracer
        self._thread = thread
        self._engine_thread = engine_thread
        self._line: asyncio.Queue[tuple[LoadAdapter, Mapping[str, str]] | _Drop] = asyncio.Queue()

    def load(self, load: LoadAdapter, headers: Mapping[str, str]) -> None:
        """Put a load in line. headers: trace context of the request that waits for it."""
        self._line.put_nowait((load, headers))

    def drop(self, adapters: tuple[Adapter, ...]) -> None:
        """Put in line that the adapters' memory is given back."""
        self._line.put_nowait(_Drop(adapters))

    async def give_up(self, num_bytes: int) -> int:
        """Give idle adapters' memory back for the host's sake; how many bytes that were.

        Copies in host memory where the device has its own, else the device's adapters themselves.

        Cancelled, what is in line is given back all the same, only later.
        """
        loop = asyncio.get_running_loop()
        spared = await loop.run_in_executor(self._thread, self._device.spare, num_bytes)
        if spared is not None:
            return spared  # the device has memory of its own: evicting there frees none here
        adapters = self._engine.give_up(num_bytes, self._clock.now())
        if not adapters:
            return 0
        done: asyncio.Future[None] = loop.create_future()
        self._line.put_nowait(_Drop(adapters, done))
        await done
        return sum(adapter.num_bytes for adapter in adapters)

    async def run(self, give_up: GiveUp, wake: Callable[[], None]) -> None:
        """Work the line off for ever.

        give_up: for sequences whose adapter cannot be loaded. wake: after each job.
        """
        while True:
            job = await self._line.get()
            if isinstance(job, _Drop):
                await self._carry_out_drop(list(job.adapters))
                await self.report_gone(_ids(job.adapters))
                if job.done is not None and not job.done.done():
                    job.done.set_result(None)
            else:
                await self._carry_out(*job, give_up)
            wake()

    async def _carry_out(
        self, load: LoadAdapter, headers: Mapping[str, str], give_up: GiveUp
    ) -> None:
        await self._report(load.adapter.adapter_id, messages.Residency.LOADING)
        held = list(load.evict)
        if await self._is_loaded(load, headers, held):
            self._engine.adapter_loaded(load.adapter)
            await self.report_gone(_ids(load.evict))
            await self._report(load.adapter.adapter_id, messages.Residency.RESIDENT)
            return
        lost = await self._failed(load.adapter)
        homeless = self._engine.take_back(held)
        gone = set(load.evict).difference(held).union(homeless)
        await self._carry_out_drop(homeless)
        name = load.adapter.adapter_id
        await self.report_gone((name, *sorted(_ids(gone))))
        await give_up(lost, f"adapter {name!r} cannot be loaded now; the worker's log says why")

    async def _failed(self, adapter: Adapter) -> list[Sequence]:
        """Take a failed load in; who is lost by it. None if the adapter was replaced meanwhile."""
        run_in = asyncio.get_running_loop().run_in_executor
        try:
            entry = await run_in(self._thread, self._catalog.find, adapter.adapter_id)
        except UnknownAdapter:
            return self._engine.adapter_failed(adapter, self._clock.now())
        if entry.adapter == adapter:
            return self._engine.adapter_failed(adapter, self._clock.now())
        return self._engine.adapter_replaced(adapter, entry.adapter, self._clock.now())

    async def _is_loaded(
        self, load: LoadAdapter, headers: Mapping[str, str], held: list[Adapter]
    ) -> bool:
        """Carry a load out, taking off `held` each victim whose memory is given back.

        Nothing is given back where memd does not answer: then there is nothing to win by it.
        """
        span = self._span(load, headers)
        name = load.adapter.adapter_id

        def carry_out() -> None:
            entry = self._catalog.known(name)
            if entry is None or entry.adapter != load.adapter:
                raise UnknownAdapter("it has been replaced or removed")
            if held:
                self._device.check_memory()
                self._give_back(held)
            self._device.load_adapter(load.adapter, entry.file, headers_of(span))

        error: str | None = None
        try:
            await self._leasing(load.adapter, carry_out)
        except AnoleError as fault:
            error = f"adapter {name!r} cannot be loaded: {fault}"
            log.error("%s", error)
        except Exception:
            error = f"adapter {name!r} cannot be loaded: see the worker's log"
            log.exception("%s", error)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end()
        return error is None

    async def _leasing(self, adapter: Adapter, carry_out: Callable[[], None]) -> None:
        """Run what leases memory, once more if memd refuses it and there is something to give."""
        try:
            await self._uploading(carry_out)
        except LeaseRefused as refusal:
            if not await self._made_room(adapter, refusal):
                raise
            await self._uploading(carry_out)

    async def _uploading(self, carry_out: Callable[[], None]) -> None:
        """Run what takes the device's memory, once more where that is free in pieces only."""
        run_in = asyncio.get_running_loop().run_in_executor
        try:
            await run_in(self._thread, carry_out)
        except DeviceMemoryFull:
            await run_in(self._engine_thread, self._device.compact)
            await run_in(self._thread, carry_out)

    async def _made_room(self, adapter: Adapter, refusal: LeaseRefused) -> bool:
        """Whether the host, which has no room for one more adapter now, has some for another."""
        if not refusal.retryable:
            return False
        adapters = self._engine.give_up(adapter.num_bytes, self._clock.now())
        if not adapters:
            return False
        log.info("%s: %d idle adapters go instead", refusal, len(adapters))
        await self._carry_out_drop(list(adapters))
        await self.report_gone(_ids(adapters))
        return True

    def _span(self, load: LoadAdapter, headers: Mapping[str, str]) -> Span:
        span = self._tracer.start_span(
            SpanName.ADAPTER_LOAD, context=context_of(headers), kind=SpanKind.INTERNAL
        )
        span.set_attribute(Attribute.ADAPTER, load.adapter.adapter_id)
        span.set_attribute(Attribute.ADAPTER_RANK, load.adapter.rank)
        span.set_attribute(Attribute.ADAPTER_BYTES, load.adapter.num_bytes)
        return span

    async def _carry_out_drop(self, adapters: list[Adapter]) -> None:
        run_in = asyncio.get_running_loop().run_in_executor
        await run_in(self._thread, self._give_back, adapters)

    def _give_back(self, held: list[Adapter]) -> None:
        """Give the memory of adapters back; takes each off the list.

        One whose memory cannot be given back keeps no other from it.
        """
        while held:
            adapter = held.pop(0)
            try:
                self._device.drop_adapter(adapter)
            except Exception:
                log.exception("the memory of %s cannot be given back", adapter.adapter_id)

    async def report_gone(self, adapter_ids: Iterable[AdapterId]) -> None:
        """Report as absent those of which no generation is here or on its way."""
        ledger = self._engine.memory.adapters
        here = {a.adapter_id for state in Residency for a in ledger.adapters(state)}
        for adapter_id in adapter_ids:
            if adapter_id not in here:
                await self._report(adapter_id, messages.Residency.ABSENT)

    async def _report(self, adapter_id: AdapterId, residency: messages.Residency) -> None:
        message = AdapterResidencyChanged(
            worker_id=self._worker_id, adapter_id=adapter_id, residency=residency
        )
        await self._outbox.put(SCHEDULER, message)


def _ids(adapters: Iterable[Adapter]) -> list[AdapterId]:
    return [adapter.adapter_id for adapter in adapters]
