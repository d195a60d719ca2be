"""Schedulers over a real broker and a real store, with workers played by hand.

The broker is one of their own: the scheduler's queue has only one name.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from anole_scheduler.app import SchedulerService
from anole_scheduler.settings import SchedulerSettings
from anole_shared.bus import Bus
from anole_shared.bus_amqp import AmqpBus
from anole_shared.clock import SystemClock
from anole_shared.keys import Collection
from anole_shared.lifecycle import Resources
from anole_shared.messages import (
    Message,
    RequestFailed,
    SequenceAdmitted,
    SequenceReturned,
)
from anole_shared.settings import CommonSettings
from anole_shared.store_redis import RedisStore
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER, gateway_queue, worker_queue
from tests.servers import RabbitMQ, serving
from tests.traffic import until
from tests.unit.scheduler.letters import finished, reported, submitted
from tests.wire import Wire

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

REPORT_S = 0.2
WORKER_TIMEOUT_S = 4.0


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    with serving(RabbitMQ) as server:
        yield server


@dataclass
class Hand:
    """A worker that holds what it is given until the test ends it, and reports all the time."""

    name: str
    bus: Bus
    resident: tuple[str, ...] = ()
    running: dict[str, int] = field(default_factory=dict)
    is_draining: bool = False
    is_silent: bool = False

    async def listen(self, admitted: Counter[tuple[str, int]]) -> None:
        async with self.bus.consume(worker_queue(self.name), prefetch=99) as deliveries:
            async for delivery in deliveries:
                message = delivery.message
                if isinstance(message, SequenceAdmitted):
                    admitted[message.request_id, message.attempt] += 1
                    self.running[message.request_id] = message.attempt

    async def report(self) -> None:
        while not self.is_silent:
            report = reported(
                self.name,
                running=tuple(self.running),
                resident=self.resident,
                draining=self.is_draining,
            )
            await self.say(report)
            await asyncio.sleep(REPORT_S)

    async def say(self, message: Message) -> None:
        await self.bus.publish(SCHEDULER, message, {})

    async def finish(self, request_id: str) -> None:
        attempt = self.running.pop(request_id)
        await self.say(finished(request_id, self.name, attempt=attempt))

    async def give_back(self, request_id: str) -> None:
        attempt = self.running.pop(request_id)
        await self.say(
            SequenceReturned(worker_id=self.name, request_id=request_id, attempt=attempt)
        )


class Stage:
    """Hands, a gateway that listens, and schedulers that can be started."""

    def __init__(self, bus: Bus, amqp_port: int, redis_url: str) -> None:
        self.bus = bus
        self.store = RedisStore(redis_url)
        self.admitted: Counter[tuple[str, int]] = Counter()
        self.failed: list[RequestFailed] = []
        self._amqp_port = amqp_port
        self._redis_url = redis_url

    async def gateway(self) -> None:
        async with self.bus.consume(gateway_queue("g1"), prefetch=99) as deliveries:
            async for delivery in deliveries:
                assert isinstance(delivery.message, RequestFailed)
                self.failed.append(delivery.message)

    async def submit(self, *names: str, **fields: Any) -> None:
        for name in names:
            await self.bus.publish(SCHEDULER, submitted(name, **fields), {})

    async def all_read(self) -> None:
        """The scheduler has read all that was said so far."""
        await self.submit("too-long", max_tokens=5000)
        await until(lambda: bool(self.failed))
        assert [failed.request_id for failed in self.failed] == ["too-long"]

    @asynccontextmanager
    async def scheduler(self, name: str, port: int | None = None) -> AsyncIterator[None]:
        url = f"amqp://guest:guest@127.0.0.1:{port or self._amqp_port}/?heartbeat=2"
        bus, store = await AmqpBus.connect(url), RedisStore(self._redis_url)
        settings = SchedulerSettings(
            scheduler_id=name, admit_ahead=1, settle_s=1, worker_timeout_s=WORKER_TIMEOUT_S
        )
        given = Resources(bus=bus, store=store, clock=SystemClock())
        service = SchedulerService(CommonSettings(), settings, given, Telemetry("scheduler"))
        ready, stop = asyncio.Event(), asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(service.run(ready=ready, stop=stop))
                await ready.wait()
                yield
                stop.set()
        finally:
            await bus.close()
            await store.close()


@pytest.fixture
async def stage(broker: RabbitMQ, fresh_redis_url: str) -> AsyncIterator[Stage]:
    bus = await AmqpBus.connect(broker.url)
    stage = Stage(bus, broker.port, fresh_redis_url)
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(stage.gateway())
        yield stage
        listening.cancel()
    await bus.close()
    await stage.store.close()


@asynccontextmanager
async def hands(stage: Stage, *given: Hand) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        listening = [tasks.create_task(hand.listen(stage.admitted)) for hand in given]
        await asyncio.sleep(0.2)  # their queues are there
        reporting = [tasks.create_task(hand.report()) for hand in given]
        yield
        for task in (*listening, *reporting):
            task.cancel()


async def test_a_standby_takes_over_what_waits_and_the_one_before_stands_by(
    stage: Stage, broker: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    w1, w2 = Hand("w1", stage.bus), Hand("w2", stage.bus, resident=("a",))
    names = [f"r{number}" for number in range(10)]
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(broker.port))
        await stack.enter_async_context(hands(stage, w1, w2))
        await stack.enter_async_context(stage.scheduler("cut-off", wire.port))
        successor = await stack.enter_async_context(AsyncExitStack())
        await successor.enter_async_context(stage.scheduler("successor"))
        await stage.submit(*names)
        await until(lambda: stage.admitted.total() == 6)  # two run and one waits at each worker
        wire.cut()
        for _ in range(len(names)):
            await until(lambda: bool(w1.running or w2.running))
            hand = w1 if w1.running else w2
            await hand.finish(next(iter(hand.running)))
        wire.mend()
        await until(lambda: "another scheduler has taken over" in caplog.text)
        await asyncio.sleep(WORKER_TIMEOUT_S + 1)
        assert (await stage.store.all(Collection.WORKERS)).keys() == {"w1", "w2"}
        await successor.aclose()
        await stage.submit("last")
        await until(lambda: stage.admitted["last", 0] == 1)
        await (w1 if w1.running else w2).finish("last")
        await stage.all_read()
    assert stage.admitted == Counter({(name, 0): 1 for name in [*names, "last"]})


async def test_a_successor_knows_where_adapters_are_before_it_hears_of_workers(
    stage: Stage,
) -> None:
    w1, w2 = Hand("w1", stage.bus), Hand("w2", stage.bus, resident=("a",))
    async with hands(stage, w1, w2):
        async with stage.scheduler("first"):
            async with asyncio.timeout(20):
                while len(await stage.store.all(Collection.WORKERS)) < 2:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            w1.is_silent = w2.is_silent = True
            await asyncio.sleep(2 * REPORT_S)  # the last reports are read as well
        async with stage.scheduler("second"):
            await stage.submit("r", adapter_id="a")
            await until(lambda: "r" in w2.running)
            await w2.finish("r")
            await stage.all_read()
    assert w1.running == {}


async def test_what_a_worker_gives_back_runs_elsewhere(stage: Stage) -> None:
    w1, w2 = Hand("w1", stage.bus), Hand("w2", stage.bus)
    async with stage.scheduler("only"), hands(stage, w1):
        await stage.submit("r1", "r2", "r3")
        await until(lambda: len(w1.running) == 3)
        w1.is_draining = True
        await w1.give_back("r3")
        async with hands(stage, w2):
            await until(lambda: "r3" in w2.running)
            await stage.submit("r4")
            await until(lambda: "r4" in w2.running)
            for hand, name in [(w1, "r1"), (w1, "r2"), (w2, "r3"), (w2, "r4")]:
                await hand.finish(name)
            await stage.all_read()
    assert stage.admitted == {("r1", 0): 1, ("r2", 0): 1, ("r3", 0): 2, ("r4", 0): 1}
