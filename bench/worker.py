"""The real worker with its memd in this process, and nobody between it and who asks.

Requests go in as the scheduler's messages and tokens come out as the gateway's: over the in-process
bus, which hands messages over as they are. What the stack adds to this is gateway, scheduler, HTTP.
"""

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anole_memd.app import MemdService
from anole_memd.settings import MemdSettings
from anole_shared.bus import Bus, Delivery
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.lifecycle import resources, run_services
from anole_shared.messages import (
    AdapterPrefetchRequested,
    AdapterResidencyChanged,
    RequestFailed,
    Residency,
    Sampling,
    SequenceAdmitted,
    SequenceOutput,
    Stopping,
    TokensGenerated,
)
from anole_shared.settings import CommonSettings, load
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER, gateway_queue, worker_queue
from anole_worker.app import WorkerService
from anole_worker.settings import WorkerSettings
from bench.load_client import Job, RequestFault
from bench.section import Plan

_GATEWAY = GatewayId("bench")
_PREFETCH = 256
_LOAD_S = 60.0
_GREEDY = Sampling(temperature=0.0)


class Worker:
    """A running worker, seen by whoever sends it work."""

    def __init__(self, bus: Bus, worker_id: WorkerId) -> None:
        self._bus = bus
        self._queue = worker_queue(worker_id)
        self._streams: dict[RequestId, asyncio.Queue[SequenceOutput | RequestFailed]] = {}
        self._residents: dict[AdapterId, asyncio.Event] = {}
        self._numbers = itertools.count()

    async def stream(self, job: Job) -> AsyncGenerator[int]:
        """Yield, as they come, how many tokens each step has brought; as load_client wants it.

        Raises:
            RequestFault: the worker cannot run the job.
        """
        request_id = RequestId(f"request-{next(self._numbers)}")
        outputs = self._streams[request_id] = asyncio.Queue()
        await self._bus.publish(self._queue, _admitted(request_id, job), {})
        try:
            while True:
                output = await outputs.get()
                if isinstance(output, RequestFailed):
                    raise RequestFault(output.message)
                yield len(output.token_ids)
                if output.finish_reason is not None:
                    return
        finally:
            del self._streams[request_id]

    async def load(self, adapter_id: str) -> float:
        """Have an adapter loaded that nobody asks for; seconds until it is there.

        Raises:
            TimeoutError: it is not loaded, for want of room that may be taken for it.
        """
        name = AdapterId(adapter_id)
        resident = self._residents[name] = asyncio.Event()
        begin = time.perf_counter()
        await self._bus.publish(self._queue, AdapterPrefetchRequested(adapter_id=name), {})
        async with asyncio.timeout(_LOAD_S):
            await resident.wait()
        del self._residents[name]
        return time.perf_counter() - begin

    async def hear_tokens(self) -> None:
        """Hand tokens to their streams, for ever."""
        async with self._bus.consume(gateway_queue(_GATEWAY), prefetch=_PREFETCH) as deliveries:
            async for delivery in deliveries:
                self._take_tokens(delivery)

    def _take_tokens(self, delivery: Delivery) -> None:
        message = delivery.message
        outputs: tuple[SequenceOutput | RequestFailed, ...] = ()
        if isinstance(message, TokensGenerated):
            outputs = message.outputs
        elif isinstance(message, RequestFailed):
            outputs = (message,)
        for output in outputs:
            if output.request_id in self._streams:
                self._streams[output.request_id].put_nowait(output)

    async def hear_reports(self) -> None:
        """Take what the scheduler would be told, for ever."""
        async with self._bus.consume(SCHEDULER, prefetch=_PREFETCH) as deliveries:
            async for delivery in deliveries:
                message = delivery.message
                if (
                    isinstance(message, AdapterResidencyChanged)
                    and message.residency is Residency.RESIDENT
                    and message.adapter_id in self._residents
                ):
                    self._residents[message.adapter_id].set()
                await delivery.ack()


@asynccontextmanager
async def serving(plan: Plan, adapters: Path | None, **given: Any) -> AsyncIterator[Worker]:  # noqa: ANN401
    """A worker that serves these adapters; given: its settings."""
    with tempfile.TemporaryDirectory(prefix="anole-bench-") as folder:
        common = load(CommonSettings, memd_socket=Path(folder) / "memd.sock").model_copy(
            update={"amqp_url": None, "redis_url": None, "model": str(plan.model)}
        )
        settings = load(WorkerSettings, adapters=adapters, worker_id="bench", **given)
        async with resources(common) as parts:
            memd = MemdService(common, load(MemdSettings), Telemetry("memd"))
            service = WorkerService(common, settings, parts, Telemetry("worker"), plan.model)
            worker = Worker(parts.bus, service.worker_id)
            ready, stop = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                heard = [
                    tasks.create_task(worker.hear_tokens(), name="tokens"),
                    tasks.create_task(worker.hear_reports(), name="reports"),
                ]
                running = run_services([memd, service], ready=ready, stop=stop)
                tasks.create_task(running, name="services")
                await ready.wait()
                try:
                    yield worker
                finally:
                    stop.set()
                    for task in heard:
                        task.cancel()


def _admitted(request_id: RequestId, job: Job) -> SequenceAdmitted:
    return SequenceAdmitted(
        request_id=request_id,
        attempt=0,
        gateway_id=_GATEWAY,
        adapter_id=None if job.adapter is None else AdapterId(job.adapter),
        prompt_token_ids=job.prompt,
        max_tokens=job.max_tokens,
        sampling=_GREEDY,
        stopping=Stopping(ignore_eos=True),
    )
