"""What a worker reports, and when it does not."""

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from anole_shared.clock import SystemClock
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.messages import (
    AdaptersDiscovered,
    Message,
    Sampling,
    SequenceAdmitted,
    SequenceReturned,
    WorkerCapacity,
    WorkerDrainRequested,
    WorkerReported,
)
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER, Queue
from anole_worker.catalog import Catalog
from anole_worker.inbox import Inbox
from anole_worker.loader import Loader
from anole_worker.loop import EngineLoop
from anole_worker.outbox import Outbox
from tests.unit.scheduler.letters import Letter
from tests.unit.worker.engines import make_engine
from tests.unit.worker.loops import SHAPE, ScriptedDevice
from tests.unit.worker.test_outbox import FailingBus, message

WORKER = WorkerId("w")


class CountingBus(FailingBus):
    """Says when it has taken three messages."""

    def __init__(self) -> None:
        super().__init__()
        self.has_three = asyncio.Event()

    async def publish(self, queue: Queue, message: Message, headers: Mapping[str, str]) -> None:
        await super().publish(queue, message, headers)
        if len(self.taken) == 3:
            self.has_three.set()


def make_inbox(outbox: Outbox, thread: ThreadPoolExecutor) -> Inbox:
    engine, tracer = make_engine(), Telemetry("worker").tracer
    catalog = Catalog(None, SHAPE, bytes_of=lambda _: 1, max_bytes=1)
    loop = EngineLoop(
        worker_id=WORKER,
        engine=engine,
        device=ScriptedDevice(),
        catalog=catalog,
        loader=Loader(
            worker_id=WORKER,
            engine=engine,
            device=ScriptedDevice(),
            catalog=catalog,
            outbox=outbox,
            clock=SystemClock(),
            tracer=tracer,
            thread=thread,
            engine_thread=thread,
        ),
        outbox=outbox,
        clock=SystemClock(),
        tracer=tracer,
        engine_thread=thread,
        files_thread=thread,
    )
    capacity = WorkerCapacity(
        max_num_seqs=4, block_size=4, block_bytes=2, memory_bytes=32, max_model_len=64
    )
    return Inbox(
        worker_id=WORKER,
        model="tiny",
        capacity=capacity,
        catalog=catalog,
        loop=loop,
        outbox=outbox,
        files_thread=thread,
        host_adapters=lambda: (AdapterId("copied"),),
    )


async def test_reports_go_on_once_the_line_moves_again() -> None:
    bus = CountingBus()
    outbox = Outbox(bus)
    with ThreadPoolExecutor(1) as thread:
        async with asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(make_inbox(outbox, thread).report_every(0))
            for _ in range(100):
                await asyncio.sleep(0)
            publishing = tasks.create_task(outbox.run())
            async with asyncio.timeout(10):
                await bus.has_three.wait()
            reporting.cancel()
            publishing.cancel()
    assert isinstance(bus.taken[0], AdaptersDiscovered)
    assert isinstance(bus.taken[1], WorkerReported)
    assert bus.taken[1].host == ("copied",)
    assert isinstance(bus.taken[2], WorkerReported)


async def test_a_line_that_stands_still_holds_one_report() -> None:
    outbox = Outbox(FailingBus())
    with ThreadPoolExecutor(1) as thread:
        async with asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(make_inbox(outbox, thread).report_every(0))
            for _ in range(100):
                await asyncio.sleep(0)
            reporting.cancel()
    # The announcement and the first report were the first two: the next message is the third.
    assert await outbox.put(SCHEDULER, message(0)) == 3


def admitted(name: str) -> SequenceAdmitted:
    return SequenceAdmitted(
        request_id=RequestId(name),
        attempt=2,
        gateway_id=GatewayId("g"),
        adapter_id=None,
        prompt_token_ids=(5, 6, 7),
        max_tokens=4,
        sampling=Sampling(),
    )


async def test_who_drains_says_so_and_gives_back_what_waits_and_what_comes() -> None:
    bus = CountingBus()
    outbox = Outbox(bus)
    with ThreadPoolExecutor(1) as thread:
        inbox = make_inbox(outbox, thread)
        await inbox.receive(Letter(admitted("waits")))
        await inbox.drain(within_s=10)
        await inbox.receive(Letter(admitted("late")))
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(outbox.run())
            async with asyncio.timeout(10):
                await bus.has_three.wait()
            publishing.cancel()
    report, *returned = bus.taken
    assert isinstance(report, WorkerReported)
    assert report.draining
    assert returned == [
        SequenceReturned(worker_id=WORKER, request_id=RequestId(name), attempt=2)
        for name in ("waits", "late")
    ]


async def test_what_does_not_end_in_time_holds_up_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(1) as thread:
        inbox = make_inbox(Outbox(FailingBus()), thread)
        await inbox.receive(Letter(admitted("runs")))
        inbox._loop.engine.plan_step(now=0.0)
        caplog.set_level(logging.WARNING)
        await inbox.drain(within_s=0)
    assert "1 sequences have not ended" in caplog.text


async def test_an_operators_word_is_heard() -> None:
    with ThreadPoolExecutor(1) as thread:
        inbox = make_inbox(Outbox(FailingBus()), thread)
        assert not inbox.drain_requested.is_set()
        await inbox.receive(Letter(WorkerDrainRequested()))
        assert inbox.drain_requested.is_set()


async def test_a_second_copy_of_what_runs_here_is_not_given_back_while_draining() -> None:
    bus = CountingBus()
    outbox = Outbox(bus)
    with ThreadPoolExecutor(1) as thread:
        inbox = make_inbox(outbox, thread)
        await inbox.receive(Letter(admitted("runs")))
        assert inbox._loop.engine.plan_step(0) is not None
        await inbox.drain(within_s=0)
        await inbox.receive(Letter(admitted("runs")))
        await outbox.put(SCHEDULER, message(0))
        await outbox.put(SCHEDULER, message(1))
        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(outbox.run())
            async with asyncio.timeout(10):
                await bus.has_three.wait()
            publishing.cancel()
    assert not any(isinstance(each, SequenceReturned) for each in bus.taken)
