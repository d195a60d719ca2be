"""Drives the engine: plan, run the step on its thread, send the tokens; loads run beside it."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer

from anole_shared.clock import Clock
from anole_shared.errors import AnoleError
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.messages import (
    AdapterResidencyChanged,
    FailureCode,
    RequestFailed,
    Residency,
    SequenceOutput,
    TokensGenerated,
)
from anole_shared.telemetry import Attribute, SpanName, context_of, headers_of
from anole_shared.topology import SCHEDULER, gateway_queue
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.engine import Engine, LoadAdapter, Output
from anole_worker.core.sequence import Ending, Sequence
from anole_worker.core.step import Step
from anole_worker.outbox import Outbox
from anole_worker.spans import SequenceSpans
from anole_worker.translate import FINISH_REASONS, finished_of, output_of

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_RETRY_ROOM_S = 0.5
"""How soon to look again where sequences wait but nothing can run."""


class Device(Protocol):
    """What the loop needs of the device; blocking calls, each on its own thread."""

    def run(self, step: Step) -> list[int | None]: ...

    def check_memory(self) -> None: ...

    def load_adapter(self, file: AdapterFile, headers: Mapping[str, str]) -> None: ...

    def drop_adapter(self, adapter_id: AdapterId) -> None: ...


class EngineLoop:
    """The engine's shell. Its own state is only changed on the event loop's thread."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        engine: Engine,
        device: Device,
        files: Mapping[AdapterId, AdapterFile],
        outbox: Outbox,
        clock: Clock,
        tracer: Tracer,
        engine_thread: Executor,
        loader_thread: Executor,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self._worker_id = worker_id
        self._device = device
        self._files = files
        self._outbox = outbox
        self._tracer = tracer
        self._engine_thread = engine_thread
        self._loader_thread = loader_thread
        self._spans: dict[RequestId, SequenceSpans] = {}
        self._loads: asyncio.Queue[LoadAdapter] = asyncio.Queue()
        self._wake = asyncio.Event()

    async def admit(self, sequence: Sequence, headers: Mapping[str, str]) -> None:
        """Take a sequence in; a second copy of one that is here already is ignored."""
        if sequence.request_id in self.engine:
            log.warning("request %s is here already", sequence.request_id)
            return
        adapter_id = sequence.adapter_id
        is_hit = adapter_id in self.engine.adapters.resident()
        spans = SequenceSpans(self._tracer, headers, sequence, self._worker_id, is_hit=is_hit)
        self._spans[sequence.request_id] = spans
        refusal = self.engine.refusal(sequence)
        if refusal is not None:
            await self._give_up([sequence], FailureCode.INTERNAL, refusal)
            return
        self.engine.add(sequence)
        self._wake.set()

    async def abort(self, request_id: RequestId) -> None:
        """Stop a sequence; its end is reported now, or after the step that runs with it."""
        sequence = self.engine.abort(request_id, self.clock.now())
        if sequence is not None:
            await self._ended(sequence, Ending.ABORT)
        self._wake.set()

    def prefetch(self, adapter_id: AdapterId) -> None:
        """Load an adapter if there is idle room for it."""
        self.engine.prefetch(adapter_id)
        self._wake.set()

    async def run_steps(self) -> None:
        """Plan and run steps for ever."""
        while True:
            now = self.clock.now()
            for load in self.engine.plan_loads(now):
                self._loads.put_nowait(load)
            step = self.engine.plan_step(now)
            if step is None:
                await self._rest()
                continue
            for row in step.rows:
                self._spans[row.request_id].in_step()
            await self._run_step(step)

    async def _rest(self) -> None:
        """Until something happens; for a moment only where sequences wait."""
        self._wake.clear()
        try:
            async with asyncio.timeout(_RETRY_ROOM_S if self.engine.sequences else None):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _run_step(self, step: Step) -> None:
        try:
            drawn = await self._in(self._engine_thread, lambda: self._device.run(step))
        except Exception:
            log.exception("a step of %d rows broke; its sequences end", len(step.rows))
            lost = self.engine.fail_step(self.clock.now())
            await self._give_up(lost, FailureCode.INTERNAL, "the worker failed while it ran this")
            return
        outputs = self.engine.complete_step(drawn, self.clock.now())
        await self._send(outputs)

    async def _in(self, thread: Executor, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(thread, call)

    async def _send(self, outputs: Iterable[Output]) -> None:
        """One message to each gateway that has a client in the step."""
        by_gateway: dict[GatewayId, list[SequenceOutput]] = defaultdict(list)
        ended: list[Output] = []
        for output in outputs:
            sequence = output.sequence
            by_gateway[sequence.gateway_id].append(output_of(output))
            if output.token_id is not None:
                self._spans[sequence.request_id].token(sequence.num_output_tokens)
            if output.ending is not None:
                ended.append(output)
        for gateway_id, parts in by_gateway.items():
            message = TokensGenerated(worker_id=self._worker_id, outputs=tuple(parts))
            await self._outbox.put(gateway_queue(gateway_id), message)
        for output in ended:
            if output.ending is not None:
                await self._ended(output.sequence, output.ending)

    async def _ended(self, sequence: Sequence, ending: Ending, error: str | None = None) -> None:
        spans = self._spans.pop(sequence.request_id)
        spans.end(sequence, FINISH_REASONS[ending], error)
        await self._outbox.put(SCHEDULER, finished_of(sequence, ending, self._worker_id))

    async def _give_up(self, lost: Iterable[Sequence], code: FailureCode, message: str) -> None:
        """Tell both sides that these sequences get no (further) answer."""
        for sequence in lost:
            failed = RequestFailed(
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                code=code,
                message=message,
            )
            await self._outbox.put(gateway_queue(sequence.gateway_id), failed)
            await self._ended(sequence, Ending.ERROR, message)

    async def run_loads(self) -> None:
        """Load adapters for ever, one after the other, beside the steps."""
        while True:
            load = await self._loads.get()
            await self._report(load.adapter_id, Residency.LOADING)
            held = list(load.evict)
            if await self._load(load, held):
                self.engine.adapter_loaded(load.adapter_id)
                await self._report_absent(load.evict)
                await self._report(load.adapter_id, Residency.RESIDENT)
            else:
                await self._load_failed(load, held)
            self._wake.set()

    async def _load_failed(self, load: LoadAdapter, held: list[AdapterId]) -> None:
        """Tell who waited, and list those of the victims again that the device still holds."""
        now = self.clock.now()
        lost = self.engine.adapter_failed(load.adapter_id, now)
        homeless = self.engine.take_back(held, now)
        gone = set(load.evict).difference(held).union(homeless)
        try:
            await self._in(self._loader_thread, lambda: self._drop(homeless))
        except AnoleError as fault:
            log.error("an adapter's memory cannot be given back: %s", fault)
        await self._report_absent((load.adapter_id, *sorted(gone)))
        message = f"adapter {load.adapter_id!r} cannot be loaded now; the worker's log says why"
        await self._give_up(lost, FailureCode.ADAPTER_FAILED, message)

    def _drop(self, held: list[AdapterId]) -> None:
        """Give the memory of adapters back; takes each off the list."""
        while held:
            self._device.drop_adapter(held.pop(0))

    async def _load(self, load: LoadAdapter, held: list[AdapterId]) -> bool:
        """Carry a load out, taking off `held` each victim whose memory is given back.

        Nothing is given back where memd does not answer: then there is nothing to win by it.
        """
        file = self._files[load.adapter_id]
        waiting = self._spans.get(load.request_id) if load.request_id else None
        span = self._tracer.start_span(
            SpanName.ADAPTER_LOAD,
            context=context_of(waiting.headers if waiting else {}),
            kind=SpanKind.INTERNAL,
        )
        span.set_attribute(Attribute.ADAPTER, load.adapter_id)
        span.set_attribute(Attribute.ADAPTER_RANK, file.rank)
        span.set_attribute(Attribute.ADAPTER_BYTES, file.packed_bytes)
        headers = headers_of(span)

        def carry_out() -> None:
            if held:
                self._device.check_memory()
                self._drop(held)
            self._device.load_adapter(file, headers)

        error: str | None = None
        try:
            await self._in(self._loader_thread, carry_out)
        except AnoleError as fault:
            error = f"adapter {load.adapter_id!r} cannot be loaded: {fault}"
            log.error("%s", error)
        except Exception:
            error = f"adapter {load.adapter_id!r} cannot be loaded: see the worker's log"
            log.exception("%s", error)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end()
        return error is None

    async def _report_absent(self, adapter_ids: Iterable[AdapterId]) -> None:
        for adapter_id in adapter_ids:
            await self._report(adapter_id, Residency.ABSENT)

    async def _report(self, adapter_id: AdapterId, residency: Residency) -> None:
        message = AdapterResidencyChanged(
            worker_id=self._worker_id, adapter_id=adapter_id, residency=residency
        )
        await self._outbox.put(SCHEDULER, message)
