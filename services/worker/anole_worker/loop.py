"""Drives the engine: plan, run the step on its thread, send the tokens; loads run beside it."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from opentelemetry.trace import Tracer

from anole_shared.clock import Clock
from anole_shared.errors import AnoleError
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.messages import (
    FailureCode,
    RequestFailed,
    SequenceOutput,
    SequenceReturned,
    TokensGenerated,
)
from anole_shared.topology import SCHEDULER, gateway_queue
from anole_worker.catalog import Catalog
from anole_worker.core.adapter import Adapter
from anole_worker.core.engine import Engine, Output
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Ending, Phase, Sequence
from anole_worker.core.step import Drawn, Step
from anole_worker.errors import DeviceLost
from anole_worker.loader import Loader
from anole_worker.outbox import Outbox
from anole_worker.spans import SequenceSpans
from anole_worker.translate import FINISH_REASONS, finished_of, output_of

log = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_MAX_HINTS = 256
"""Trace contexts of prefetches that are kept until the load begins."""
_RETRY_ROOM_S = 0.5
"""How soon to look again where sequences wait but nothing can run."""


class StepDevice(Protocol):
    """What the loop needs of the device; blocking calls, all on the engine's thread."""

    def run(self, step: Step) -> list[Drawn]: ...

    def give_back(self, blocks: tuple[int, ...]) -> None: ...

    def prepare(self, request_id: RequestId, grammar: str) -> None: ...

    def forget(self, request_id: RequestId) -> None: ...


class EngineLoop:
    """The engine's shell. Its own state is only changed on the event loop's thread."""

    def __init__(
        self,
        *,
        worker_id: WorkerId,
        engine: Engine,
        device: StepDevice,
        catalog: Catalog,
        loader: Loader,
        outbox: Outbox,
        clock: Clock,
        tracer: Tracer,
        engine_thread: Executor,
        files_thread: Executor,
    ) -> None:
        """files_thread: for looking at adapters' files, and compiling grammars."""
        self.engine = engine
        self.clock = clock
        self._worker_id = worker_id
        self._device = device
        self._catalog = catalog
        self._loader = loader
        self._outbox = outbox
        self._tracer = tracer
        self._engine_thread = engine_thread
        self._files_thread = files_thread
        self._spans: dict[RequestId, SequenceSpans] = {}
        self._hints: dict[Adapter, Mapping[str, str]] = {}
        self._wake = asyncio.Event()
        self._one_less = asyncio.Event()

    async def admit(self, sequence: Sequence, headers: Mapping[str, str]) -> None:
        """Take a sequence in; a second copy of one that is here already is ignored."""
        if sequence.request_id in self.engine:
            log.warning("request %s is here already", sequence.request_id)
            return
        residency = self.engine.memory.adapters.residency
        is_hit = sequence.adapter is not None and residency(sequence.adapter) is Residency.RESIDENT
        spans = SequenceSpans(self._tracer, headers, sequence, self._worker_id, is_hit=is_hit)
        self._spans[sequence.request_id] = spans
        refusal = self.engine.refusal(sequence)
        if refusal is None and sequence.sampling.grammar is not None:
            refusal = await self._prepare(sequence.request_id, sequence.sampling.grammar)
        if refusal is not None:
            await self._give_up([sequence], FailureCode.INTERNAL, refusal)
            return
        self.engine.add(sequence, self.clock.now())
        self._wake.set()

    async def _prepare(self, request_id: RequestId, grammar: str) -> str | None:
        """Compile a grammar; what is wrong with it, if so."""
        try:
            await self._in(self._files_thread, lambda: self._device.prepare(request_id, grammar))
        except AnoleError as fault:
            return str(fault)
        return None

    async def refuse(self, sequence: Sequence, message: str, headers: Mapping[str, str]) -> None:
        """Say that a sequence's adapter cannot be served."""
        if sequence.request_id in self.engine:
            log.warning("request %s is here already", sequence.request_id)
            return
        spans = SequenceSpans(self._tracer, headers, sequence, self._worker_id, is_hit=False)
        self._spans[sequence.request_id] = spans
        await self._give_up([sequence], FailureCode.ADAPTER_FAILED, message)

    async def abort(self, request_id: RequestId) -> None:
        """Stop a sequence; its end is reported now, or after the step that runs with it."""
        sequence = self.engine.abort(request_id, self.clock.now())
        if sequence is not None:
            await self._ended(sequence, Ending.ABORT)
        self._wake.set()

    async def give_back(self) -> None:
        """Have the scheduler place elsewhere what waits here and has no token yet."""
        for sequence in self.engine.sequences:
            if sequence.phase is Phase.WAITING and sequence.num_output_tokens == 0:
                self.engine.abort(sequence.request_id, self.clock.now())
                self._close(sequence, Ending.ABORT)
                await self.tell_returned(sequence.request_id, sequence.attempt)

    async def tell_returned(self, request_id: RequestId, attempt: int) -> None:
        """Say that a request was not begun here."""
        returned = SequenceReturned(
            worker_id=self._worker_id, request_id=request_id, attempt=attempt
        )
        await self._outbox.put(SCHEDULER, returned)

    async def idle(self) -> None:
        """Return when no sequence is left."""
        while self.engine.sequences:
            self._one_less.clear()
            await self._one_less.wait()

    async def prefetch(self, adapter_id: AdapterId, headers: Mapping[str, str]) -> None:
        """Load an adapter if there is room for it; say so if it cannot be.

        headers: trace context of the request that will need it.
        """
        entry = self._catalog.known(adapter_id)
        if entry is None:
            await self._loader.report_gone([adapter_id])
            return
        self._hints[entry.adapter] = headers
        if len(self._hints) > _MAX_HINTS:
            del self._hints[next(iter(self._hints))]
        self.engine.prefetch(entry.adapter, self.clock.now())
        self._wake.set()

    async def run_steps(self) -> None:
        """Plan and run steps for ever. What a step brought is sent while the next one runs.

        Raises:
            DeviceLost: none can run any more.
        """
        outputs: list[Output] = []
        while True:
            step = await self._plan()
            if step is None:
                outputs = await self._send(outputs)
                await self._rest()
                continue
            for row in step.rows:
                self._spans[row.request_id].in_step()
            running = self._start(step)
            outputs = await self._send(outputs)
            outputs = await self._completed(step, running)

    async def _plan(self) -> Step | None:
        now = self.clock.now()
        loads = self.engine.plan_loads(now)
        stripped = self.engine.memory.collect_stripped()
        if stripped:
            await self._in(self._engine_thread, lambda: self._device.give_back(stripped))
        for load in loads:
            spans = self._spans.get(load.request_id) if load.request_id else None
            hint = self._hints.pop(load.adapter, {})
            self._loader.load(load, spans.headers if spans else hint)
        declined = self.engine.collect_declined()
        if declined:
            await self._loader.report_gone(adapter.adapter_id for adapter in declined)
        step = self.engine.plan_step(now)
        evicted = self.engine.memory.collect_evicted()
        if evicted:
            self._loader.drop(evicted)
        return step

    async def _rest(self) -> None:
        """Until something happens; for a moment only where sequences wait, or guesses are due."""
        self._wake.clear()
        is_patient = not self.engine.sequences and not self.engine.is_guessing
        try:
            async with asyncio.timeout(None if is_patient else _RETRY_ROOM_S):
                await self._wake.wait()
        except TimeoutError:
            return

    def _start(self, step: Step) -> "asyncio.Future[list[Drawn]]":
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._engine_thread, self._device.run, step)

    async def _completed(self, step: Step, running: "asyncio.Future[list[Drawn]]") -> list[Output]:
        try:
            drawn = await running
        except DeviceLost:
            raise
        except Exception:
            log.exception("a step of %d rows broke; its sequences end", len(step.rows))
            lost = self.engine.fail_step(self.clock.now())
            await self._give_up(lost, FailureCode.INTERNAL, "the worker failed while it ran this")
            return []
        return self.engine.complete_step(drawn, self.clock.now())

    async def _in(self, thread: Executor, call: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(thread, call)

    async def _send(self, outputs: list[Output]) -> list[Output]:
        """One message to each gateway that has a client in the step; what is then left: nothing."""
        by_gateway: dict[GatewayId, list[SequenceOutput]] = defaultdict(list)
        for output in outputs:
            sequence = output.sequence
            by_gateway[sequence.gateway_id].append(output_of(output))
            spans = self._spans.get(sequence.request_id)
            if output.token_id is not None and spans is not None:
                spans.token(sequence.num_output_tokens)
        for gateway_id, parts in by_gateway.items():
            message = TokensGenerated(worker_id=self._worker_id, outputs=tuple(parts))
            await self._outbox.put(gateway_queue(gateway_id), message)
        for output in outputs:
            if output.ending is not None:
                await self._ended(output.sequence, output.ending)
        return []

    async def _ended(self, sequence: Sequence, ending: Ending, error: str | None = None) -> None:
        self._close(sequence, ending, error)
        await self._outbox.put(SCHEDULER, finished_of(sequence, ending, self._worker_id))

    def _close(self, sequence: Sequence, ending: Ending, error: str | None = None) -> None:
        """Let go of what the shell keeps of a sequence that the engine has ended."""
        spans = self._spans.pop(sequence.request_id)
        spans.end(sequence, FINISH_REASONS[ending], error)
        if sequence.sampling.grammar is not None:
            self._device.forget(sequence.request_id)
        self._one_less.set()

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
        """Load and drop adapters for ever."""
        await self._loader.run(self._lost_adapter, self._wake.set)

    async def _lost_adapter(self, lost: list[Sequence], message: str) -> None:
        await self._give_up(lost, FailureCode.ADAPTER_FAILED, message)
