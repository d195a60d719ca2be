"""The engine's shell over the in-process bus, with a device that draws tokens from a script."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anole_shared.bus import Bus
from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.errors import AnoleError
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.messages import (
    AdapterResidencyChanged,
    FailureCode,
    FinishReason,
    Message,
    RequestFailed,
    Residency,
    SequenceFinished,
    TokensGenerated,
)
from anole_shared.telemetry import SpanName, Telemetry
from anole_shared.topology import SCHEDULER, Queue, gateway_queue
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.engine import Engine
from anole_worker.core.step import Step
from anole_worker.loop import EngineLoop
from anole_worker.model_shape import ModelShape
from anole_worker.outbox import Outbox
from tests.unit.worker.engines import draw, make_engine, make_sequence

WORKER = WorkerId("w")
SHAPE = ModelShape(
    family="llama",
    num_layers=1,
    hidden_size=8,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    vocab_size=32,
    max_model_len=64,
    eos_token_ids=(2,),
)


@dataclass
class ScriptedDevice:
    """Draws token 9 for every row; loads and steps can be made to wait or to fail."""

    may_step: threading.Event = field(default_factory=threading.Event)
    may_load: threading.Event = field(default_factory=threading.Event)
    step_fault: Exception | None = None
    load_fault: Exception | None = None
    memory_fault: Exception | None = None
    dropped: list[AdapterId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_step.set()
        self.may_load.set()

    def run(self, step: Step) -> list[int | None]:
        assert self.may_step.wait(10)
        if self.step_fault is not None:
            fault, self.step_fault = self.step_fault, None
            raise fault
        return draw(step)

    def check_memory(self) -> None:
        if self.memory_fault is not None:
            raise self.memory_fault

    def load_adapter(self, file: AdapterFile, headers: Mapping[str, str]) -> None:
        assert self.may_load.wait(10)
        if self.load_fault is not None:
            raise self.load_fault

    def drop_adapter(self, adapter_id: AdapterId) -> None:
        self.dropped.append(adapter_id)


class Heard:
    """What arrived on one queue so far."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.changed = asyncio.Event()

    async def listen(self, bus: Bus, queue: Queue) -> None:
        async with bus.consume(queue, prefetch=100) as deliveries:
            async for delivery in deliveries:
                self.messages.append(delivery.message)
                await delivery.ack()
                self.changed.set()

    async def until(self, holds: Callable[[list[Message]], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds(self.messages):
                self.changed.clear()
                await self.changed.wait()


@dataclass
class Bench:
    loop: EngineLoop
    device: ScriptedDevice
    scheduler: Heard
    gateway: Heard
    spans: InMemorySpanExporter

    def endings(self) -> dict[str, FinishReason]:
        return {
            message.request_id: message.finish_reason
            for message in self.scheduler.messages
            if isinstance(message, SequenceFinished)
        }

    async def until_ended(self, *names: str) -> None:
        await self.scheduler.until(lambda _: set(names) <= set(self.endings()))


def adapter_file(name: AdapterId, size_bytes: int) -> AdapterFile:
    return AdapterFile(
        adapter_id=name,
        path=Path(name),
        shape=SHAPE,
        rank=8,
        target_modules=("q_proj",),
        packed_bytes=size_bytes,
        generation="1",
        fingerprints=((0, 0, 0), (0, 0, 0)),
    )


@asynccontextmanager
async def bench(engine: Engine | None = None) -> AsyncIterator[Bench]:
    bus, spans = MemoryBus(), InMemorySpanExporter()
    engine = engine or make_engine()
    device, outbox = ScriptedDevice(), Outbox(bus)
    telemetry = Telemetry("worker", exporter=spans)
    with ThreadPoolExecutor(1) as engine_thread, ThreadPoolExecutor(1) as loader_thread:
        loop = EngineLoop(
            worker_id=WORKER,
            engine=engine,
            device=device,
            files={name: adapter_file(name, size) for name, size in engine.adapter_sizes.items()},
            outbox=outbox,
            clock=SystemClock(),
            tracer=telemetry.tracer,
            engine_thread=engine_thread,
            loader_thread=loader_thread,
        )
        scheduler, gateway = Heard(), Heard()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(scheduler.listen(bus, SCHEDULER)),
                tasks.create_task(gateway.listen(bus, gateway_queue(GatewayId("g")))),
                tasks.create_task(outbox.run()),
                tasks.create_task(loop.run_steps()),
                tasks.create_task(loop.run_loads()),
            ]
            yield Bench(loop, device, scheduler, gateway, spans)
            device.may_step.set()
            device.may_load.set()
            for task in running:
                task.cancel()
    telemetry.shutdown()


async def test_tokens_go_to_the_gateway_and_the_end_to_the_scheduler() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("r", max_tokens=3), {})
        await b.until_ended("r")
    assert b.endings() == {"r": FinishReason.LENGTH}
    outputs = [o for m in b.gateway.messages if isinstance(m, TokensGenerated) for o in m.outputs]
    assert [output.token_ids for output in outputs] == [(9,), (9,), (9,)]
    assert [o.finish_reason for o in outputs] == [None, None, FinishReason.LENGTH]


async def test_one_step_is_one_message_to_each_gateway() -> None:
    async with bench() as b:
        b.device.may_step.clear()
        await b.loop.admit(make_sequence("first", max_tokens=1), {})
        for name in ("second", "third"):
            await b.loop.admit(make_sequence(name, prompt=1, max_tokens=1), {})
        b.device.may_step.set()
        await b.until_ended("first", "second", "third")
    sizes = [len(m.outputs) for m in b.gateway.messages if isinstance(m, TokensGenerated)]
    assert sum(sizes) == 3
    assert len(sizes) <= 2


async def test_a_load_does_not_hold_up_the_steps_of_others() -> None:
    async with bench() as b:
        b.device.may_load.clear()
        await b.loop.admit(make_sequence("needs", adapter="a"), {})
        await b.loop.admit(make_sequence("base"), {})
        await b.until_ended("base")
        assert "needs" not in b.endings()
        b.device.may_load.set()
        await b.until_ended("needs")
    moves = [m for m in b.scheduler.messages if isinstance(m, AdapterResidencyChanged)]
    assert [m.residency for m in moves] == [Residency.LOADING, Residency.RESIDENT]


async def test_an_adapter_that_makes_room_is_dropped_and_reported() -> None:
    async with bench(make_engine(sizes={"a": 20, "b": 20}, adapter_budget=20)) as b:
        await b.loop.admit(make_sequence("first", adapter="a", max_tokens=1), {})
        await b.until_ended("first")
        await b.loop.admit(make_sequence("second", adapter="b", max_tokens=1), {})
        await b.until_ended("second")
    assert b.device.dropped == ["a"]
    last = {
        m.adapter_id: m.residency
        for m in b.scheduler.messages
        if isinstance(m, AdapterResidencyChanged)
    }
    assert last == {"a": Residency.ABSENT, "b": Residency.RESIDENT}


async def test_nothing_is_evicted_while_memd_does_not_answer() -> None:
    async with bench(make_engine(sizes={"a": 20, "b": 20}, adapter_budget=20)) as b:
        await b.loop.admit(make_sequence("first", adapter="a", max_tokens=1), {})
        await b.until_ended("first")
        b.device.memory_fault = AnoleError("no memd")
        await b.loop.admit(make_sequence("missed", adapter="b", max_tokens=1), {})
        await b.until_ended("missed")
        assert b.loop.engine.adapters.resident() == ("a",)
        await b.loop.admit(make_sequence("again", adapter="a", max_tokens=1), {})
        await b.until_ended("again")
    assert b.device.dropped == []
    assert b.endings()["missed"] is FinishReason.ERROR
    assert b.endings()["again"] is FinishReason.LENGTH
    moves = [m for m in b.scheduler.messages if isinstance(m, AdapterResidencyChanged)]
    assert [(m.adapter_id, m.residency) for m in moves] == [
        ("a", Residency.LOADING),
        ("a", Residency.RESIDENT),
        ("b", Residency.LOADING),
        ("b", Residency.ABSENT),
    ]


async def test_a_kept_victim_whose_room_is_claimed_is_dropped_after_all() -> None:
    engine = make_engine(sizes={"a": 20, "b": 5, "c": 15}, adapter_budget=20)
    async with bench(engine) as b:
        await b.loop.admit(make_sequence("first", adapter="a", max_tokens=1), {})
        await b.until_ended("first")
        b.device.memory_fault = AnoleError("no memd")
        await b.loop.admit(make_sequence("r", adapter="b", max_tokens=1), {})
        await b.loop.admit(make_sequence("s", adapter="c", max_tokens=1), {})
        await b.until_ended("r", "s")
    assert b.device.dropped == ["a"]
    assert b.endings()["s"] is FinishReason.LENGTH
    assert engine.adapters.resident() == ("c",)


async def test_a_load_that_fails_fails_who_waited_and_logs_what_clients_need_not_know(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        b.device.load_fault = AnoleError("the files in /srv/adapters/a have changed")
        await b.loop.admit(make_sequence("r", adapter="a"), {})
        await b.until_ended("r")
        await b.gateway.until(bool)
    (failed,) = b.gateway.messages
    assert isinstance(failed, RequestFailed)
    assert failed.code is FailureCode.ADAPTER_FAILED
    assert failed.message == "adapter 'a' cannot be loaded now; the worker's log says why"
    assert "the files in /srv/adapters/a have changed" in caplog.text
    assert b.endings() == {"r": FinishReason.ERROR}


async def test_a_step_that_breaks_fails_its_rows_and_the_worker_goes_on() -> None:
    async with bench(make_engine(max_num_seqs=1)) as b:
        b.device.step_fault = RuntimeError("out of memory")
        await b.loop.admit(make_sequence("breaks"), {})
        await b.loop.admit(make_sequence("next"), {})
        await b.until_ended("breaks", "next")
    assert b.endings() == {"breaks": FinishReason.ERROR, "next": FinishReason.LENGTH}
    failed = [m for m in b.gateway.messages if isinstance(m, RequestFailed)]
    assert [m.code for m in failed] == [FailureCode.INTERNAL]
    assert "out of memory" not in failed[0].message


async def test_an_abort_ends_a_sequence_whether_it_waits_or_runs() -> None:
    async with bench(make_engine(max_num_seqs=1)) as b:
        b.device.may_step.clear()
        await b.loop.admit(make_sequence("runs", max_tokens=4), {})
        await b.loop.admit(make_sequence("waits"), {})
        await b.loop.abort(RequestId("waits"))
        await b.until_ended("waits")
        await b.loop.abort(RequestId("runs"))
        b.device.may_step.set()
        await b.until_ended("runs")
        await b.loop.abort(RequestId("runs"))
    assert set(b.endings().values()) == {FinishReason.ABORT}


async def test_a_second_copy_of_a_sequence_is_ignored() -> None:
    async with bench() as b:
        b.device.may_step.clear()
        for _ in range(2):
            await b.loop.admit(make_sequence("r", max_tokens=1), {})
        b.device.may_step.set()
        await b.until_ended("r")
        await b.loop.admit(make_sequence("last", max_tokens=1), {})
        await b.until_ended("last")
    ends = [m for m in b.scheduler.messages if isinstance(m, SequenceFinished)]
    assert [m.request_id for m in ends] == ["r", "last"]


async def test_what_can_never_run_is_failed_at_once() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("r", adapter="unknown"), {})
        await b.until_ended("r")
        await b.gateway.until(bool)
    assert isinstance(b.gateway.messages[0], RequestFailed)


async def test_the_spans_of_a_cold_sequence_tell_wait_load_prefill_and_decode() -> None:
    async with bench() as b:
        await b.loop.admit(make_sequence("r", adapter="a", max_tokens=2), {})
        await b.until_ended("r")
    spans = {span.name: span for span in b.spans.get_finished_spans()}
    assert set(spans) == {
        SpanName.SEQUENCE,
        SpanName.ADAPTER_WAIT,
        SpanName.ADAPTER_LOAD,
        SpanName.PREFILL,
        SpanName.DECODE,
    }
    root = spans[SpanName.SEQUENCE].context
    assert root is not None
    for name, span in spans.items():
        if name != SpanName.SEQUENCE:
            assert span.parent is not None
            assert span.parent.span_id == root.span_id
