"""The engine's shell over the in-process bus, with a device that draws tokens from a script."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anole_shared.bus import Bus
from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.errors import AnoleError
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.messages import (
    FinishReason,
    Message,
    SequenceFinished,
)
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER, Queue, gateway_queue
from anole_worker.adapter_files import AdapterFile
from anole_worker.catalog import Catalog, Entry
from anole_worker.core.adapter import Adapter
from anole_worker.core.engine import Engine
from anole_worker.core.residency import Residency as Held
from anole_worker.core.step import Drawn, Step
from anole_worker.errors import UnknownAdapter
from anole_worker.loader import Loader
from anole_worker.loop import EngineLoop
from anole_worker.model_shape import ModelShape
from anole_worker.outbox import Outbox
from tests.unit.worker.engines import SIZES, adapter, draw, make_engine

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
    lease_faults: list[Exception] = field(default_factory=list)
    """Raised by the next loads, one each."""
    memory_fault: Exception | None = None
    drop_faults: list[Exception] = field(default_factory=list)
    """Raised by the next drops, one each."""
    copied_bytes: int | None = None
    """In host memory, beside the device's own; None: the device has none of its own."""
    num_compacted: int = 0
    dropped: list[AdapterId] = field(default_factory=list)
    stripped: list[int] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    forgotten: list[RequestId] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_step.set()
        self.may_load.set()

    def run(self, step: Step) -> list[Drawn]:
        assert self.may_step.wait(10)
        if self.step_fault is not None:
            fault, self.step_fault = self.step_fault, None
            raise fault
        return draw(step)

    def check_memory(self) -> None:
        if self.memory_fault is not None:
            raise self.memory_fault

    def give_back(self, blocks: tuple[int, ...]) -> None:
        self.stripped += blocks

    def prepare(self, request_id: RequestId, grammar: str) -> None:
        if grammar == "wrong":
            raise AnoleError("the grammar is wrong")
        self.prepared.append(grammar)

    def forget(self, request_id: RequestId) -> None:
        self.forgotten.append(request_id)

    def load_adapter(self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]) -> None:
        assert self.may_load.wait(10)
        if self.lease_faults:
            raise self.lease_faults.pop(0)
        if self.load_fault is not None:
            raise self.load_fault

    def drop_adapter(self, adapter: Adapter) -> None:
        if self.drop_faults:
            raise self.drop_faults.pop(0)
        self.dropped.append(adapter.adapter_id)

    def compact(self) -> None:
        self.num_compacted += 1

    def spare(self, num_bytes: int) -> int | None:
        return None if self.copied_bytes is None else min(self.copied_bytes, num_bytes)


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
    loader: Loader
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


class KnownFiles(Catalog):
    """Knows the adapters of the engine's tests without a folder, all of one generation."""

    def __init__(self, generation: str = "1") -> None:
        super().__init__(None, SHAPE, bytes_of=lambda _: 1, max_bytes=1)
        self.generation = generation

    def known(self, adapter_id: AdapterId) -> Entry | None:
        if adapter_id not in SIZES:
            return None
        file = AdapterFile(
            adapter_id=adapter_id,
            path=Path(adapter_id),
            shape=SHAPE,
            rank=8,
            target_modules=("q_proj",),
            num_weights=SIZES[adapter_id],
            stored="F32",
            generation=self.generation,
            fingerprints=((0, 0, 0), (0, 0, 0)),
        )
        return Entry(file=file, adapter=adapter(adapter_id, generation=self.generation))

    def find(self, adapter_id: AdapterId) -> Entry:
        entry = self.known(adapter_id)
        if entry is None:
            raise UnknownAdapter(f"no adapter {adapter_id}")
        return entry


@asynccontextmanager
async def bench(
    engine: Engine | None = None, catalog: Catalog | None = None
) -> AsyncIterator[Bench]:
    bus, spans = MemoryBus(), InMemorySpanExporter()
    engine, catalog = engine or make_engine(), catalog or KnownFiles()
    device, outbox = ScriptedDevice(), Outbox(bus)
    telemetry = Telemetry("worker", exporter=spans)
    with (
        ThreadPoolExecutor(1) as engine_thread,
        ThreadPoolExecutor(1) as loader_thread,
        ThreadPoolExecutor(1) as files_thread,
    ):
        loader = Loader(
            worker_id=WORKER,
            engine=engine,
            device=device,
            catalog=catalog,
            outbox=outbox,
            clock=SystemClock(),
            tracer=telemetry.tracer,
            thread=loader_thread,
            engine_thread=engine_thread,
        )
        loop = EngineLoop(
            worker_id=WORKER,
            engine=engine,
            device=device,
            catalog=catalog,
            loader=loader,
            outbox=outbox,
            clock=SystemClock(),
            tracer=telemetry.tracer,
            engine_thread=engine_thread,
            files_thread=files_thread,
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
            yield Bench(loop, loader, device, scheduler, gateway, spans)
            device.may_step.set()
            device.may_load.set()
            for task in running:
                task.cancel()
    telemetry.shutdown()


def resident(engine: Engine) -> list[str]:
    return [a.adapter_id for a in engine.memory.adapters.adapters(Held.RESIDENT)]
