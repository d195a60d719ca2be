"""The scheduler service over a bus and a store, with workers and gateways played by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anole_scheduler import app
from anole_scheduler.app import SchedulerService
from anole_scheduler.mirror import Mirror
from anole_scheduler.settings import SchedulerSettings
from anole_shared.bus import Delivery
from anole_shared.bus_memory import MemoryBus
from anole_shared.codec import decode_record, encode
from anole_shared.keys import Collection
from anole_shared.lifecycle import Resources
from anole_shared.messages import (
    AdapterRecord,
    AdaptersDiscovered,
    FailureCode,
    Message,
    RequestAborted,
    RequestFailed,
    SchedulerRecord,
    SequenceAborted,
    SequenceAdmitted,
    SequenceReturned,
    WorkerLeft,
    WorkerRecord,
)
from anole_shared.settings import CommonSettings
from anole_shared.store_memory import MemoryStore
from anole_shared.telemetry import Attribute, SpanName, Telemetry
from anole_shared.topology import SCHEDULER, Queue, gateway_queue, worker_queue
from tests.clocks import HandClock
from tests.traffic import PATIENCE_S, take, until
from tests.unit.scheduler.letters import finished, reported, submitted


class CutOffBus(MemoryBus):
    """Seems to lose its connection, and finds it again."""

    is_cut_off = False

    @property
    def is_connected(self) -> bool:
        return not self.is_cut_off


class Stage:
    """A bus with worker w1 and gateway g1 listening, and schedulers that can be started on it."""

    def __init__(self) -> None:
        self.bus = CutOffBus()
        self.clock = HandClock()
        self.store = MemoryStore(self.clock)
        self.exporter = InMemorySpanExporter()
        self.telemetry = Telemetry("scheduler", exporter=self.exporter)
        self.listening = AsyncExitStack()
        self.workers = AsyncExitStack()

    async def open(self) -> None:
        self.gateway = await self.listen(gateway_queue("g1"), self.listening)
        self.worker = await self.listen(worker_queue("w1"), self.workers)

    async def listen(self, queue: Queue, stack: AsyncExitStack) -> AsyncIterator[Delivery]:
        return await stack.enter_async_context(self.bus.consume(queue, prefetch=99))

    async def close(self) -> None:
        await self.workers.aclose()
        await self.listening.aclose()
        self.telemetry.shutdown()

    @asynccontextmanager
    async def scheduler(self, name: str = "s1", **settings: Any) -> AsyncIterator[None]:
        ready, stop = asyncio.Event(), asyncio.Event()
        service = SchedulerService(
            CommonSettings(),
            SchedulerSettings(scheduler_id=name, **settings),
            Resources(bus=self.bus, store=self.store, clock=self.clock),
            self.telemetry,
        )
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(ready=ready, stop=stop))
            await ready.wait()
            yield
            stop.set()

    async def say(self, *messages: Message) -> None:
        for message in messages:
            await self.bus.publish(SCHEDULER, message, {})

    async def left_in_queue(self) -> list[Message]:
        """What the broker still keeps for a scheduler, once there is none."""
        await self.say(WorkerLeft(worker_id="the last"))
        kept: list[Message] = []
        async with self.bus.consume(SCHEDULER, prefetch=9999) as deliveries:
            async for delivery in deliveries:
                if delivery.message == WorkerLeft(worker_id="the last"):
                    return kept
                kept.append(delivery.message)
        return kept


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(app, "_TICK_S", 0.005)
    stage = Stage()
    await stage.open()
    yield stage
    await stage.close()


async def next_of(deliveries: AsyncIterator[Delivery]) -> Message:
    (delivery,) = await take(deliveries, 1)
    return delivery.message


async def until_stored(
    stage: Stage, collection: Collection, accepted: Callable[[dict[str, bytes]], object]
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not accepted(dict(await stage.store.all(collection))):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def as_time_passes(
    stage: Stage, deliveries: AsyncIterator[Delivery], count: int
) -> list[Message]:
    """The next messages, however long they take on the scheduler's clock."""
    async with asyncio.TaskGroup() as tasks:
        taking = tasks.create_task(take(deliveries, count))
        while not taking.done():
            stage.clock.time_s += 1
            await asyncio.sleep(0.005)
    return [delivery.message for delivery in taking.result()]


async def test_a_request_travels_to_a_worker_and_leaves_nothing_behind(stage: Stage) -> None:
    async with stage.scheduler():
        await stage.say(reported(), submitted("r1"))
        admitted = await next_of(stage.worker)
        assert isinstance(admitted, SequenceAdmitted)
        assert (admitted.request_id, admitted.prompt_token_ids) == ("r1", (1, 2, 3))
        await stage.say(finished("r1"), submitted("r2"))
        await next_of(stage.worker)
        await stage.say(finished("r2"), submitted("r3", max_tokens=5000))
        assert isinstance(await next_of(stage.gateway), RequestFailed)
    assert await stage.left_in_queue() == []


async def test_the_wait_is_between_the_gateways_span_and_the_workers(stage: Stage) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    async with stage.scheduler():
        await stage.say(reported())
        await stage.bus.publish(SCHEDULER, submitted("r1"), headers)
        (delivery,) = await take(stage.worker, 1)
    (span,) = stage.exporter.get_finished_spans()
    assert span.name == SpanName.QUEUE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == parent
    assert span.attributes is not None
    assert span.attributes[Attribute.WORKER] == "w1"
    assert delivery.headers["traceparent"] == f"00-{trace}-{span.context.span_id:016x}-01"


async def test_a_full_queue_is_answered_at_once(stage: Stage) -> None:
    async with stage.scheduler(max_waiting=1):
        await stage.say(submitted("r1"), submitted("r2"))
        failed = await next_of(stage.gateway)
    assert isinstance(failed, RequestFailed)
    assert (failed.request_id, failed.code) == ("r2", FailureCode.QUEUE_FULL)
    assert failed.retry_after_s is not None
    assert [message.request_id for message in await stage.left_in_queue()] == ["r1"]


async def test_a_client_that_leaves_stops_the_worker(stage: Stage) -> None:
    async with stage.scheduler():
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
        await stage.say(RequestAborted(request_id="r1", reason="client left"))
        assert await next_of(stage.worker) == SequenceAborted(request_id="r1")
        await stage.say(finished("r1"), submitted("r2"))
        await next_of(stage.worker)
        await stage.say(finished("r2"), submitted("r3", max_tokens=5000))
        await next_of(stage.gateway)
    assert await stage.left_in_queue() == []


async def test_a_worker_whose_queue_is_gone_has_lost_its_requests(stage: Stage) -> None:
    async with stage.scheduler():
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
        await stage.workers.aclose()
        await stage.say(submitted("r2"))
        failed = [await next_of(stage.gateway) for _ in range(2)]
    assert [(f.request_id, f.code) for f in failed if isinstance(f, RequestFailed)] == [
        ("r1", FailureCode.WORKER_LOST),
        ("r2", FailureCode.WORKER_LOST),
    ]


async def test_a_silent_worker_has_lost_its_requests(stage: Stage) -> None:
    async with stage.scheduler(worker_timeout_s=10):
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
        (failed,) = await as_time_passes(stage, stage.gateway, 1)
    assert isinstance(failed, RequestFailed)
    assert failed.code is FailureCode.WORKER_LOST
    assert await stage.left_in_queue() == []


async def test_silence_does_not_count_while_the_scheduler_is_cut_off(stage: Stage) -> None:
    async with stage.scheduler(worker_timeout_s=10):
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
        await asyncio.sleep(0.05)
        stage.bus.is_cut_off = True
        for _ in range(20):
            stage.clock.time_s += 3
            await asyncio.sleep(0.01)
        stage.bus.is_cut_off = False
        await asyncio.sleep(0.05)
        await stage.say(submitted("r2", max_tokens=5000))
        failed = await next_of(stage.gateway)
    assert isinstance(failed, RequestFailed)
    assert failed.request_id == "r2", "r1 was not lost"


async def test_a_second_scheduler_takes_over_and_nothing_is_lost_or_run_twice(
    stage: Stage,
) -> None:
    async with stage.scheduler("s1"):
        await stage.say(reported(), *[submitted(f"r{number}") for number in range(8)])
        running = [await next_of(stage.worker) for _ in range(6)]  # 2 run, 4 wait at the worker
    async with stage.scheduler("s2", settle_s=5):
        given = tuple(message.request_id for message in running)
        await stage.say(reported(running=given, num_free_blocks=90))
        for request_id in given:
            await stage.say(finished(request_id))
        rest = await as_time_passes(stage, stage.worker, 2)
        admitted = [message.request_id for message in rest]
        await stage.say(*map(finished, admitted), submitted("last", max_tokens=5000))
        await next_of(stage.gateway)
    assert given == ("r0", "r1", "r2", "r3", "r4", "r5")
    assert admitted == ["r6", "r7"]
    assert await stage.left_in_queue() == []


async def test_a_request_that_still_runs_at_a_take_over_ends_with_its_worker(stage: Stage) -> None:
    async with stage.scheduler("s1"):
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
    async with stage.scheduler("s2"):
        await stage.say(reported(running=("r1",), num_free_blocks=98), submitted("r2"))
        (admitted,) = await as_time_passes(stage, stage.worker, 1)
        assert admitted.request_id == "r2"
        await stage.say(finished("r1"), finished("r2"), submitted("r3", max_tokens=5000))
        await next_of(stage.gateway)
    assert await stage.left_in_queue() == []


async def test_a_scheduler_that_stands_by_takes_over(stage: Stage) -> None:
    async with stage.scheduler("standby"):
        async with stage.scheduler("active"):
            await stage.say(submitted("r0"))
        # The consumer that was first is the active one: the standby, here.
        await stage.say(reported())
        assert (await next_of(stage.worker)).request_id == "r0"


async def test_workers_adapters_and_the_scheduler_itself_are_shown_in_the_store(
    stage: Stage,
) -> None:
    record = AdapterRecord(
        adapter_id="a", rank=8, target_modules=("q_proj",), size_bytes=10, generation="1"
    )
    async with stage.scheduler("s1"):
        await stage.say(
            AdaptersDiscovered(worker_id="w1", adapters=(record,)), reported(resident=("a",))
        )
        await until_stored(stage, Collection.ADAPTERS, lambda found: "a" in found)
        await until_stored(stage, Collection.WORKERS, lambda found: "w1" in found)
        await until_stored(stage, Collection.SERVICES, lambda found: "scheduler:s1" in found)
        adapters = await stage.store.all(Collection.ADAPTERS)
        workers = await stage.store.all(Collection.WORKERS)
        assert decode_record(AdapterRecord, adapters["a"]) == record
        assert decode_record(WorkerRecord, workers["w1"]).resident == ("a",)
        await stage.say(WorkerLeft(worker_id="w1"))
        await until_stored(stage, Collection.WORKERS, lambda found: not found)
    assert await stage.store.all(Collection.SERVICES) == {}
    assert "a" in await stage.store.all(Collection.ADAPTERS), "it outlives workers and schedulers"


async def test_the_scheduler_shows_what_it_has_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RENEW_S", 0.005)
    async with stage.scheduler("s1"), stage.scheduler("standby"):
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                shown = await stage.store.all(Collection.SCHEDULERS)
                records = [decode_record(SchedulerRecord, body) for body in shown.values()]
                if any(record.num_running for record in records):
                    break
                await asyncio.sleep(0.005)
    assert [record.scheduler_id for record in records] == ["s1"]
    assert sum(size.num_admitted for size in records[0].sizes) == 1


async def test_requests_are_served_while_the_store_is_away(stage: Stage) -> None:
    async with stage.scheduler():
        await stage.store.close()
        await stage.say(reported(), submitted("r1"))
        assert (await next_of(stage.worker)).request_id == "r1"


async def test_an_adapter_that_went_while_no_scheduler_was_there_is_forgotten(
    stage: Stage,
) -> None:
    record = AdapterRecord(
        adapter_id="a", rank=8, target_modules=("q_proj",), size_bytes=10, generation="1"
    )
    await stage.store.put(Collection.ADAPTERS, "a", encode(record))
    async with stage.scheduler():
        await stage.say(AdaptersDiscovered(worker_id="w1", adapters=()), reported())
        await until_stored(stage, Collection.ADAPTERS, lambda found: not found)


async def test_what_a_worker_that_drains_has_not_begun_goes_to_another(stage: Stage) -> None:
    other = await stage.listen(worker_queue("w2"), stage.workers)
    async with stage.scheduler():
        await stage.say(reported("w1"), submitted("r1"), submitted("r2"))
        assert [(await next_of(stage.worker)).request_id for _ in range(2)] == ["r1", "r2"]
        await stage.say(
            reported("w1", running=("r1", "r2"), draining=True),
            SequenceReturned(worker_id="w1", request_id="r2", attempt=0),
            reported("w2"),
        )
        assert (await next_of(other)).request_id == "r2"
        await until_stored(
            stage,
            Collection.WORKERS,
            lambda found: len(found) == 2 and decode_record(WorkerRecord, found["w1"]).draining,
        )
        await stage.say(finished("r1"), WorkerLeft(worker_id="w1"), finished("r2", "w2"))
        await stage.say(submitted("r3", max_tokens=5000))
        assert (await next_of(stage.gateway)).request_id == "r3", "neither was lost"
    assert await stage.left_in_queue() == []


async def test_a_scheduler_starts_from_what_the_store_shows_of_workers(stage: Stage) -> None:
    """The second one hears of no worker, and yet knows where the adapter is."""
    other = await stage.listen(worker_queue("w2"), stage.workers)
    async with stage.scheduler("s1"):
        await stage.say(reported("w1"), reported("w2", resident=("a",)))
        await until_stored(stage, Collection.WORKERS, lambda found: len(found) == 2)
    async with stage.scheduler("s2"):
        await stage.say(submitted("r1", adapter_id="a"))
        assert (await next_of(other)).request_id == "r1"


async def test_who_was_succeeded_drops_what_it_knew_and_takes_its_turn_again(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "RENEW_S", 0.005)
    async with stage.scheduler(worker_timeout_s=10):
        await stage.say(reported(), submitted("r1"))
        await next_of(stage.worker)
        successor = Mirror(stage.store)
        await successor.take_over()
        await stage.say(reported(running=("r1",), num_free_blocks=98))
        await until(lambda: "another scheduler has taken over" in caplog.text)
        await stage.say(reported(running=("r1",), num_free_blocks=98), finished("r1"))
        await stage.say(submitted("r2", max_tokens=5000))
        failed = await next_of(stage.gateway)
    assert isinstance(failed, RequestFailed)
    assert failed.request_id == "r2", "r1 was never said to be lost"
    assert await stage.left_in_queue() == []
