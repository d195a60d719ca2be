"""The worker service: messages to the engine, steps to the device, tokens to the gateways."""

import asyncio
import logging
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from anole_shared.ids import WorkerId
from anole_shared.keys import RENEW_S
from anole_shared.lifecycle import Resources, keep_alive
from anole_shared.messages import WorkerCapacity, WorkerLeft
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER, worker_queue
from anole_worker import adapter_files, model_shape
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.blocks import BlockPool
from anole_worker.core.engine import Engine, EngineLimits
from anole_worker.core.residency import AdapterCache
from anole_worker.inbox import Inbox
from anole_worker.leases import RegionClient
from anole_worker.loop import EngineLoop
from anole_worker.outbox import Outbox
from anole_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from anole_worker.runtime.device import Device

log = logging.getLogger(__name__)

_MAX_NUM_WAITING = 1024
_DRAIN_S = 3.0


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
        """Load, then serve until stop; what still runs then is lost, and the scheduler told so."""
        with (
            ThreadPoolExecutor(1, "anole-engine") as engine_thread,
            ThreadPoolExecutor(1, "anole-loader") as loader_thread,
        ):
            await self._run(engine_thread, loader_thread, ready=ready, stop=stop)

    async def _run(
        self,
        engine_thread: ThreadPoolExecutor,
        loader_thread: ThreadPoolExecutor,
        *,
        ready: asyncio.Event,
        stop: asyncio.Event,
    ) -> None:
        run_in = asyncio.get_running_loop().run_in_executor
        files, refused = await run_in(loader_thread, self._discover)
        device = await run_in(engine_thread, self._device)
        try:
            engine = self._engine(device.num_blocks, files)
            outbox = Outbox(self._resources.bus)
            loop = EngineLoop(
                worker_id=self.worker_id,
                engine=engine,
                device=device,
                files={file.adapter_id: file for file in files},
                outbox=outbox,
                clock=self._resources.clock,
                tracer=self._telemetry.tracer,
                engine_thread=engine_thread,
                loader_thread=loader_thread,
            )
            inbox = Inbox(
                worker_id=self.worker_id,
                model=self._common.model_name or self._model_dir.name,
                capacity=self._capacity(engine),
                files=files,
                refused=refused,
                loop=loop,
                outbox=outbox,
            )
            await self._serve(inbox, loop, outbox, ready=ready, stop=stop)
        finally:
            await run_in(loader_thread, lambda: None)
            await run_in(engine_thread, device.close)

    async def _serve(
        self,
        inbox: Inbox,
        loop: EngineLoop,
        outbox: Outbox,
        *,
        ready: asyncio.Event,
        stop: asyncio.Event,
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(outbox.run(), name="worker outbox")
            alive = keep_alive(self._resources, self.name, self.worker_id, stop)
            tasks.create_task(alive, name="worker liveness")
            serving = [
                tasks.create_task(loop.run_steps(), name="worker steps"),
                tasks.create_task(loop.run_loads(), name="worker loads"),
                tasks.create_task(self._listen(inbox, ready), name="worker inbox"),
            ]
            await stop.wait()
            for task in serving:
                task.cancel()
            await outbox.finish(SCHEDULER, WorkerLeft(worker_id=self.worker_id), _DRAIN_S)
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
        return Device(self._model_dir, self._shape, self._settings, regions)

    def _discover(self) -> tuple[list[AdapterFile], list[tuple[str, str]]]:
        if self._settings.adapters is None:
            return [], []
        found, refused = adapter_files.discover(self._settings.adapters, self._shape)
        budget_bytes = self._settings.adapter_bytes
        too_large = "takes {} bytes, adapter memory is {}: raise ANOLE_WORKER_ADAPTER_BYTES"
        files = [file for file in found if file.leased_bytes <= budget_bytes]
        refused += [
            (file.adapter_id, too_large.format(file.leased_bytes, budget_bytes))
            for file in found
            if file.leased_bytes > budget_bytes
        ]
        for name, reason in refused:
            log.error("adapter %s in %s is refused: %s", name, self._settings.adapters, reason)
        log.info("%d adapters in %s", len(files), self._settings.adapters)
        return files, refused

    def _engine(self, num_blocks: int, files: list[AdapterFile]) -> Engine:
        limits = EngineLimits(
            max_num_seqs=self._settings.max_num_seqs,
            max_num_waiting=_MAX_NUM_WAITING,
            token_budget=max(self._settings.token_budget, self._settings.max_num_seqs),
            block_size=self._settings.block_size,
            vocab_size=self._shape.vocab_size,
            bypass_s=self._settings.bypass_s,
        )
        return Engine(
            limits,
            BlockPool(num_blocks),
            AdapterCache(self._settings.adapter_bytes),
            frozenset(self._shape.eos_token_ids),
            {file.adapter_id: file.leased_bytes for file in files},
        )

    def _capacity(self, engine: Engine) -> WorkerCapacity:
        num_blocks, block_size = engine.blocks.num_blocks, engine.limits.block_size
        return WorkerCapacity(
            max_num_seqs=engine.limits.max_num_seqs,
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=min(self._shape.max_model_len, num_blocks * block_size),
            adapter_bytes=engine.adapters.budget_bytes,
        )
