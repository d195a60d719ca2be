"""The live path: RabbitMQ, Redis and the scheduler's process, with workers that answer at once.

Beside it a relay that decides nothing: it takes the same messages from the same queue and sends
the same ones on, which no scheduler behind this broker can do in less. Gateway and workers are
played by this process, each with its own line of messages as the real ones have.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from operator import methodcaller
from pathlib import Path

import psutil

from anole_shared.bus import Bus
from anole_shared.bus_amqp import AmqpBus
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.keys import RENEW_S
from anole_shared.messages import (
    FinishReason,
    Message,
    RequestFailed,
    RequestSubmitted,
    Sampling,
    SequenceAdmitted,
    SequenceFinished,
    WorkerCapacity,
    WorkerReported,
)
from anole_shared.topology import SCHEDULER, gateway_queue, worker_queue
from bench.live_relay import NUM_WORKERS, worker_id
from bench.load_client import quantile
from bench.peers.process import ServerFault
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from tests.servers import RabbitMQ, Redis, serving

PACES, _QUICK_PACES = (20, 100, 200), (100,)
"""Submissions per second."""
IN_FLIGHT, _QUICK_IN_FLIGHT = (8, 64, 512), (64,)
"""Requests under way, the next one is submitted as soon as one has ended."""
_SECONDS, _QUICK_SECONDS = 10.0, 3.0
_WARM_S, _SETTLE_S = 1.0, 1.0
_START_S = 60.0
_PROMPT_TOKENS, _MAX_TOKENS, _NUM_ADAPTERS = 256, 128, 100
_GATEWAY = GatewayId("bench")
_CAPACITY = WorkerCapacity(
    max_num_seqs=1024,
    block_size=16,
    block_bytes=1,
    memory_bytes=10**9,
    max_model_len=4096,
)

_SIDES = {
    "relay": (["-m", "bench.live_relay"], "relay is ready"),
    "scheduler": (["-m", "anole_cli", "scheduler"], "scheduler is ready"),
}


def measure(plan: Plan) -> list[Table]:
    """Both sides at every load, in turns."""
    progress("    starting RabbitMQ and Redis")
    with serving(RabbitMQ) as rabbitmq, serving(Redis) as redis:
        variables = {
            "ANOLE_AMQP_URL": rabbitmq.url,
            "ANOLE_REDIS_URL": redis.url,
            "ANOLE_SCHEDULER_MAX_WAITING": "16384",
        }
        rows = asyncio.run(_measure(plan, rabbitmq.url, variables))
    return [_table(rows)]


async def _measure(plan: Plan, url: str, variables: Mapping[str, str]) -> list[Record]:
    paces = _QUICK_PACES if plan.is_quick else PACES
    in_flight = _QUICK_IN_FLIGHT if plan.is_quick else IN_FLIGHT
    seconds = _QUICK_SECONDS if plan.is_quick else _SECONDS
    loads: list[tuple[str, Callable[[_Cast], Load]]] = [
        *((f"{pace} a second", methodcaller("paced", pace)) for pace in paces),
        *((f"{count} under way", methodcaller("closed", count)) for count in in_flight),
    ]
    rows = []
    for name, make in loads:
        runs: dict[str, _Run] = {}
        for side, (command, said) in _SIDES.items():
            progress(f"    {name}: {side}")
            with _process(command, said, plan.work / f"live-{side}.log", variables) as process:
                async with _cast(url) as cast:
                    runs[side] = await cast.run(make(cast), seconds, process)
        rows.append(_row(name, runs))
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What one side made of one load."""

    per_s: float
    latencies_s: list[float]
    cpu_s: float
    """Of the process between, for a request."""


Load = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class _Cast:
    """A gateway, and workers that end what they get at once."""

    bus: Bus
    submitted_s: dict[RequestId, float] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    ended: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    num_submitted: int = 0

    async def run(self, load: Load, seconds: float, process: psutil.Process) -> _Run:
        """Apply the load for that long, after a moment that does not count."""
        await load(_WARM_S)
        self.latencies_s.clear()
        cpu_s, begin = _cpu_s(process), time.perf_counter()
        await load(seconds)
        wall_s = time.perf_counter() - begin
        number = len(self.latencies_s)
        return _Run(
            per_s=number / wall_s,
            latencies_s=sorted(self.latencies_s),
            cpu_s=(_cpu_s(process) - cpu_s) / number,
        )

    def paced(self, pace: int) -> Load:
        """So many submissions a second, whatever has become of those before."""

        async def load(seconds: float) -> None:
            begin, count = time.perf_counter(), round(pace * seconds)
            async with asyncio.TaskGroup() as tasks:
                for number in range(count):
                    await asyncio.sleep(begin + number / pace - time.perf_counter())
                    tasks.create_task(self._submit())
            for _ in range(count):
                await self.ended.acquire()

        return load

    def closed(self, in_flight: int) -> Load:
        """Always so many under way."""

        async def load(seconds: float) -> None:
            until_s = time.perf_counter() + seconds
            async with asyncio.TaskGroup() as tasks:
                for _ in range(in_flight):
                    tasks.create_task(self._submit())
                while time.perf_counter() < until_s:
                    await self.ended.acquire()
                    tasks.create_task(self._submit())
            for _ in range(in_flight):
                await self.ended.acquire()

        return load

    async def _submit(self) -> None:
        self.num_submitted += 1
        request_id = RequestId(f"r{self.num_submitted}")
        message = RequestSubmitted(
            request_id=request_id,
            attempt=0,
            gateway_id=_GATEWAY,
            adapter_id=AdapterId(f"adapter-{self.num_submitted % _NUM_ADAPTERS}"),
            prompt_token_ids=tuple(range(1000, 1000 + _PROMPT_TOKENS)),
            max_tokens=_MAX_TOKENS,
            sampling=Sampling(),
        )
        self.submitted_s[request_id] = time.perf_counter()
        await self.bus.publish(SCHEDULER, message, {})

    async def work(self, worker: WorkerId, is_there: asyncio.Event) -> None:
        """Be a worker, for ever."""
        lines: asyncio.Queue[Message] = asyncio.Queue()
        async with (
            self.bus.consume(worker_queue(worker), prefetch=256) as deliveries,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(self._say(lines))
            tasks.create_task(_report(worker, lines))
            is_there.set()
            async for delivery in deliveries:
                message = delivery.message
                assert isinstance(message, SequenceAdmitted), message
                begin = self.submitted_s.pop(message.request_id)
                self.latencies_s.append(time.perf_counter() - begin)
                await lines.put(_finished(worker, message))

    async def _say(self, lines: "asyncio.Queue[Message]") -> None:
        while True:
            message = await lines.get()
            await self.bus.publish(SCHEDULER, message, {})
            if isinstance(message, SequenceFinished):
                self.ended.release()

    async def hear(self) -> None:
        """Be a gateway: nothing may fail."""
        async with self.bus.consume(gateway_queue(_GATEWAY), prefetch=256) as deliveries:
            async for delivery in deliveries:
                message = delivery.message
                assert not isinstance(message, RequestFailed), message


async def _report(worker: WorkerId, lines: "asyncio.Queue[Message]") -> None:
    while True:
        report = WorkerReported(
            worker_id=worker,
            model="bench",
            capacity=_CAPACITY,
            running=(),
            num_free_blocks=_CAPACITY.num_blocks,
            resident=tuple(AdapterId(f"adapter-{number}") for number in range(_NUM_ADAPTERS)),
        )
        await lines.put(report)
        await asyncio.sleep(RENEW_S)


def _finished(worker: WorkerId, message: SequenceAdmitted) -> SequenceFinished:
    return SequenceFinished(
        worker_id=worker,
        request_id=message.request_id,
        attempt=message.attempt,
        finish_reason=FinishReason.STOP,
        num_prompt_tokens=_PROMPT_TOKENS,
        num_output_tokens=_MAX_TOKENS // 2,
    )


@asynccontextmanager
async def _cast(url: str) -> AsyncIterator[_Cast]:
    bus = await AmqpBus.connect(url)
    cast = _Cast(bus)
    try:
        async with asyncio.TaskGroup() as tasks:
            playing = [tasks.create_task(cast.hear())]
            for number in range(NUM_WORKERS):
                is_there = asyncio.Event()
                playing.append(tasks.create_task(cast.work(worker_id(number), is_there)))
                await is_there.wait()
            await asyncio.sleep(_SETTLE_S)  # each has reported
            yield cast
            await asyncio.sleep(_SETTLE_S)  # the last ends are taken in
            for task in playing:
                task.cancel()
    finally:
        await bus.close()


@contextmanager
def _process(
    command: list[str], said: str, log: Path, variables: Mapping[str, str]
) -> Iterator[psutil.Process]:
    """The process between, once it has said that it is ready."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = psutil.Popen(
            [sys.executable, *command],
            env={**psutil.Process().environ(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until_s = time.monotonic() + _START_S
        while said not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > until_s:
                raise ServerFault(f"it is not ready: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def _row(name: str, sides: Mapping[str, _Run]) -> Record:
    relay, scheduler = sides["relay"], sides["scheduler"]
    return {
        "load": name,
        "relay_per_s": relay.per_s,
        "per_s": scheduler.per_s,
        "relay_p50_ms": quantile(relay.latencies_s, 0.5) * 1e3,
        "p50_ms": quantile(scheduler.latencies_s, 0.5) * 1e3,
        "relay_p99_ms": quantile(relay.latencies_s, 0.99) * 1e3,
        "p99_ms": quantile(scheduler.latencies_s, 0.99) * 1e3,
        "relay_cpu_ms": relay.cpu_s * 1e3,
        "cpu_ms": scheduler.cpu_s * 1e3,
        "cpu_ratio": scheduler.cpu_s / relay.cpu_s,
    }


def _table(rows: list[Record]) -> Table:
    return Table(
        name="live",
        title="From a gateway's submission to its arrival at a worker",
        columns=(
            Column(key="load", title="requests"),
            Column(key="relay_per_s", title="relay: per second", form=".0f"),
            Column(key="per_s", title="scheduler: per second", form=".0f"),
            Column(key="relay_p50_ms", title="relay: P50 ms", form=".1f"),
            Column(key="p50_ms", title="scheduler: P50 ms", form=".1f"),
            Column(key="relay_p99_ms", title="relay: P99 ms", form=".1f"),
            Column(key="p99_ms", title="scheduler: P99 ms", form=".1f"),
            Column(key="relay_cpu_ms", title="relay: CPU ms each", form=".2f"),
            Column(key="cpu_ms", title="scheduler: CPU ms each", form=".2f"),
            Column(key="cpu_ratio", title="CPU ratio", form=".2f"),
        ),
        rows=tuple(rows),
        note=(
            f"Prompts of {_PROMPT_TOKENS} tokens, {_NUM_ADAPTERS} adapters, {NUM_WORKERS} workers "
            "that have room for all. RabbitMQ, the process between, and this one, which plays "
            "gateway and workers, share the machine; submissions are durable and confirmed."
        ),
    )
