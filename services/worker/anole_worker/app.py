"""The worker service: messages to the engine, steps to the device, tokens to the gateways."""

import asyncio
import logging
import os
import socket
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anole_shared.ids import WorkerId
from anole_shared.keys import RENEW_S
from anole_shared.lifecycle import Resources, either, keep_alive
from anole_shared.messages import WorkerCapacity, WorkerLeft
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER, worker_queue
from anole_worker import model_shape
from anole_worker.catalog import Catalog
from anole_worker.core import eviction
from anole_worker.core.blocks import BlockPool
from anole_worker.core.engine import Engine, EngineLimits
from anole_worker.core.memory import Memory
from anole_worker.core.pace import FixedPace, LearntPace, Pace
from anole_worker.core.prefetch import ArrivalHistogram
from anole_worker.core.residency import AdapterCache
from anole_worker.core.step_budget import PASSING_ON_CPU, StepBudget
from anole_worker.garbage import loaded_set_aside
from anole_worker.inbox import Inbox
from anole_worker.leases import RegionClient
from anole_worker.loader import Loader
from anole_worker.loop import EngineLoop
from anole_worker.outbox import Outbox
from anole_worker.revocations import Revocations
from anole_worker.settings import MAX_NUM_WAITING, WorkerSettings

if TYPE_CHECKING:
    from anole_worker.runtime.device import Device

log = logging.getLogger(__name__)

_MAX_PREDICTED = 2048
_FAREWELL_S = 3.0
_LEAST_CHUNK = 32
"""Prompt tokens in a step, however long it takes: fewer would read all weights for little."""


class WorkerService:
    """One device's worker, from loading the model to giving its memory back."""

    name = "worker"

    def __init__(
        self,
        common: CommonSettings,
        settings: WorkerSettings,
        resources: Resources,
        telemetry: Telemetry,
        model_dir: Path,
    ) -> None:
        self.worker_id = WorkerId(settings.worker_id or f"{socket.gethostname()}-{os.getpid()}")
        self._common = common
        self._settings = settings
        self._resources = resources
        self._telemetry = telemetry
        self._model_dir = model_dir
        self._shape = model_shape.read(model_dir)

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Load, then serve until stop, or until an operator has this worker drain.

        What runs then may end within drain_s; what is left is lost, and the scheduler told so.
        """
        with (
            ThreadPoolExecutor(1, "anole-engine") as engine_thread,
            ThreadPoolExecutor(1, "anole-loader") as loader_thread,
            ThreadPoolExecutor(1, "anole-files") as files_thread,
        ):
            threads = _Threads(engine=engine_thread, loader=loader_thread, files=files_thread)
            await self._run(threads, ready=ready, stop=stop)

    async def _run(self, threads: "_Threads", *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        run_in = asyncio.get_running_loop().run_in_executor
        device = await run_in(threads.engine, self._device)
        try:
            catalog = Catalog(
                self._settings.adapters,
                self._shape,
                bytes_of=device.adapter_bytes,
                max_bytes=device.memory_bytes,
            )
            await run_in(threads.files, catalog.scan)
            parts = self._parts(device, catalog, threads)
            with loaded_set_aside():
                await self._serve(parts, ready=ready, stop=stop)
        finally:
            await run_in(threads.loader, lambda: None)
            await run_in(threads.engine, device.close)

    def _parts(self, device: "Device", catalog: Catalog, threads: "_Threads") -> "_Parts":
        engine = self._engine(device.block_bytes, device.memory_bytes, is_on_cpu=device.is_on_cpu)
        outbox = Outbox(self._resources.bus)
        loader = Loader(
            worker_id=self.worker_id,
            engine=engine,
            device=device,
            catalog=catalog,
            outbox=outbox,
            clock=self._resources.clock,
            tracer=self._telemetry.tracer,
            thread=threads.loader,
            engine_thread=threads.engine,
        )
        loop = EngineLoop(
            worker_id=self.worker_id,
            engine=engine,
            device=device,
            catalog=catalog,
            loader=loader,
            outbox=outbox,
            clock=self._resources.clock,
            tracer=self._telemetry.tracer,
            engine_thread=threads.engine,
            files_thread=threads.files,
        )
        inbox = Inbox(
            worker_id=self.worker_id,
            model=self._common.model_name or self._model_dir.name,
            capacity=self._capacity(engine),
            catalog=catalog,
            loop=loop,
            outbox=outbox,
            files_thread=threads.files,
            host_adapters=device.host_adapters,
        )
        revocations = Revocations(
            self._common.memd_socket, partial(self._used_bytes, engine), loader.give_up
        )
        return _Parts(inbox=inbox, loop=loop, outbox=outbox, revocations=revocations)

    def _used_bytes(self, engine: Engine) -> int:
        since_s = self._resources.clock.now() - self._settings.idle_s
        return engine.memory.adapters.used_bytes_since(since_s)

    async def _serve(self, parts: "_Parts", *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        left = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(parts.outbox.run(), name="worker outbox")
            alive = keep_alive(self._resources, self.name, self.worker_id, left)
            tasks.create_task(alive, name="worker liveness")
            scanning = parts.inbox.scan_every(self._settings.scan_s)
            serving = [
                tasks.create_task(parts.loop.run_steps(), name="worker steps"),
                tasks.create_task(parts.loop.run_loads(), name="worker loads"),
                tasks.create_task(scanning, name="worker adapter folder"),
                tasks.create_task(self._listen(parts.inbox, ready), name="worker inbox"),
                tasks.create_task(parts.revocations.run(), name="worker revocations"),
            ]
            await either(stop, parts.inbox.drain_requested)
            await parts.inbox.drain(self._settings.drain_s)
            left.set()
            for task in serving:
                task.cancel()
            farewell = WorkerLeft(worker_id=self.worker_id)
            await parts.outbox.finish(SCHEDULER, farewell, _FAREWELL_S)
            publishing.cancel()

    async def _listen(self, inbox: Inbox, ready: asyncio.Event) -> None:
        """Receive for ever; report first as soon as the queue is there to be answered on."""
        queue = worker_queue(self.worker_id)
        async with (
            self._resources.bus.consume(queue, prefetch=256) as deliveries,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(inbox.report_every(RENEW_S), name="worker reports")
            log.info("worker %s serves", self.worker_id)
            ready.set()
            async for delivery in deliveries:
                await inbox.receive(delivery)

    def _device(self) -> "Device":
        """Blocks for seconds, also for the import: it brings torch and transformers."""
        from anole_worker.runtime.device import Device

        regions = RegionClient(self._common.memd_socket, self.worker_id)
        clock = self._resources.clock
        return Device(self._model_dir, self._shape, self._settings, regions, clock)

    def _engine(self, block_bytes: int, memory_bytes: int, *, is_on_cpu: bool) -> Engine:
        settings = self._settings
        limits = EngineLimits(
            max_num_seqs=settings.max_num_seqs,
            max_num_waiting=MAX_NUM_WAITING,
            token_budget=max(settings.token_budget, settings.max_num_seqs),
            block_size=settings.block_size,
            vocab_size=self._shape.vocab_size,
            max_loads=settings.max_loads,
            bypass_s=settings.bypass_s,
        )
        policy = eviction.by_name(settings.eviction_window_s)[settings.eviction]
        blocks = BlockPool(memory_bytes // block_bytes)
        memory = Memory(memory_bytes, block_bytes, blocks, AdapterCache(policy))
        predictor = ArrivalHistogram(_MAX_PREDICTED) if settings.predictive_prefetch else None
        eos = frozenset(self._shape.eos_token_ids)
        return Engine(
            limits, memory, eos, predictor, self._pace(limits.token_budget, is_on_cpu=is_on_cpu)
        )

    def _pace(self, token_budget: int, *, is_on_cpu: bool) -> Pace:
        settings = self._settings
        if settings.pace == "fixed":
            return FixedPace(token_budget)
        passing = settings.prompt_passing
        if passing is None:
            passing = PASSING_ON_CPU if is_on_cpu else 0.0
        budget = StepBudget(
            longest_s=settings.longest_step_s,
            alone_share=settings.alone_share,
            passing=passing,
            min_tokens=min(_LEAST_CHUNK, token_budget),
            max_tokens=token_budget,
        )
        return LearntPace(budget, token_budget=token_budget)

    def _capacity(self, engine: Engine) -> WorkerCapacity:
        memory, block_size = engine.memory, engine.limits.block_size
        return WorkerCapacity(
            max_num_seqs=engine.limits.max_num_seqs,
            block_size=block_size,
            block_bytes=memory.block_bytes,
            memory_bytes=memory.budget_bytes,
            max_model_len=min(self._shape.max_model_len, memory.blocks.num_blocks * block_size),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Threads:
    """One thread each, so that none of them waits for another."""

    engine: Executor
    loader: Executor
    files: Executor


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    inbox: Inbox
    loop: EngineLoop
    outbox: Outbox
    revocations: Revocations
