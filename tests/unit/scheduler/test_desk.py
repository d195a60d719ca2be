"""One message after another."""

import asyncio
import logging

import pytest

from anole_scheduler.core.policies.standard import policies
from anole_scheduler.core.scheduler import Scheduler
from anole_scheduler.courier import Courier
from anole_scheduler.custody import Custody
from anole_scheduler.desk import Desk
from anole_scheduler.mirror import Mirror
from anole_shared.bus_memory import MemoryBus
from anole_shared.messages import SequenceAborted
from anole_shared.store_memory import MemoryStore
from anole_shared.telemetry import Telemetry
from anole_shared.topology import worker_queue
from tests.clocks import HandClock
from tests.traffic import take
from tests.unit.scheduler.letters import Letter, finished, reported, submitted
from tests.unit.scheduler.playbook import LIMITS


class Stage:
    def __init__(self) -> None:
        self.bus = MemoryBus()
        self.custody = Custody(Telemetry("scheduler").tracer)
        clock = HandClock()
        self.desk = Desk(
            scheduler=Scheduler(LIMITS, policies("fcfs")),
            custody=self.custody,
            courier=Courier(self.bus, self.custody, asyncio.Event()),
            mirror=Mirror(MemoryStore(clock)),
            clock=clock,
        )


async def test_a_request_stays_unacknowledged_until_it_has_ended() -> None:
    stage = Stage()
    request, report, end = Letter(submitted("r1")), Letter(reported()), Letter(finished("r1"))
    async with stage.bus.consume(worker_queue("w1"), prefetch=9) as deliveries:
        await stage.desk.receive(request)
        await stage.desk.receive(report)
        (admitted,) = await take(deliveries, 1)
        assert admitted.message.type == "sequence.admitted"
        assert (request.num_acks, report.num_acks) == (0, 1)
        await stage.desk.receive(end)
    assert (request.num_acks, end.num_acks) == (1, 1)
    assert len(stage.custody) == 0


async def test_requests_of_a_worker_that_cannot_be_told_anything_are_done() -> None:
    stage = Stage()
    first, second = Letter(submitted("r1")), Letter(submitted("r2"))
    await stage.desk.receive(first)
    await stage.desk.receive(second)
    await stage.desk.receive(Letter(reported()))
    assert (first.num_acks, second.num_acks) == (1, 1)
    assert len(stage.custody) == 0


async def test_a_second_delivery_of_an_ended_request_is_acknowledged() -> None:
    stage = Stage()
    again = Letter(submitted("r1"), redelivered=True)
    await stage.desk.receive(Letter(submitted("r1")))
    await stage.desk.receive(Letter(finished("r1")))
    await stage.desk.receive(again)
    assert again.num_acks == 1


async def test_a_message_for_somebody_else_is_dropped_with_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stray = Letter(SequenceAborted(request_id="r1"))
    await Stage().desk.receive(stray)
    assert stray.num_acks == 1
    assert "sequence.aborted" in caplog.text


async def test_a_refused_worker_is_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    caplog.set_level(logging.ERROR)
    await stage.desk.receive(Letter(reported("w1")))
    for _ in range(3):
        await stage.desk.receive(Letter(reported("w2", model="large")))
    assert caplog.text.count("worker w2 gets no requests") == 1
