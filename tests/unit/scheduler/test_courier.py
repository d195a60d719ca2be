"""Telling workers and gateways."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from anole_scheduler import courier as courier_module
from anole_scheduler.core.commands import (
    AbortSequence,
    Admit,
    Done,
    Fail,
    Failure,
    Prefetch,
)
from anole_scheduler.core.events import WorkerGone
from anole_scheduler.courier import Courier
from anole_shared.bus import Delivery, Headers
from anole_shared.bus_memory import MemoryBus
from anole_shared.errors import BusUnavailable
from anole_shared.messages import (
    AdapterPrefetchRequested,
    Message,
    RequestFailed,
    SequenceAborted,
    SequenceAdmitted,
)
from anole_shared.topology import Queue, gateway_queue, worker_queue
from tests.traffic import take
from tests.unit.scheduler.letters import Letter, make_custody, submitted
from tests.unit.scheduler.playbook import request

ADMIT = Admit(worker_id="w1", request=request("r1"), residency=None)
ABORT = AbortSequence(worker_id="w1", request_id="r1", reason="gone")
PREFETCH = Prefetch(worker_id="w1", adapter_id="a", request_id="r1")
FAIL = Fail(request=request("r1"), failure=Failure.WORKER_LOST, message="lost")


class RestlessBus(MemoryBus):
    """Loses its connection at the next publications."""

    num_failures = 0
    num_attempts = 0

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        self.num_attempts += 1
        if self.num_failures > 0:
            self.num_failures -= 1
            raise BusUnavailable("not connected")
        await super().publish(queue, message, headers)


class Stage:
    """A courier with one request in custody, on a bus where worker w1 and gateway g1 listen."""

    def __init__(self) -> None:
        self.bus = RestlessBus()
        self.stop = asyncio.Event()
        self.custody = make_custody()
        self.courier = Courier(self.bus, self.custody, self.stop)
        self.letter = Letter(submitted("r1"))
        self.listening = AsyncExitStack()

    async def open(self) -> None:
        await self.custody.hold(self.letter, self.letter.message, 0)
        self.worker = await self.listen(worker_queue("w1"))
        self.gateway = await self.listen(gateway_queue("g1"))

    async def listen(self, queue: Queue) -> AsyncIterator[Delivery]:
        return await self.listening.enter_async_context(self.bus.consume(queue, prefetch=9))

    async def heard(self, who: AsyncIterator[Delivery], count: int) -> list[Message]:
        return [delivery.message for delivery in await take(who, count)]


@pytest.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(courier_module, "_FIRST_RETRY_S", 0.001)
    stage = Stage()
    await stage.open()
    yield stage
    await stage.listening.aclose()


async def test_a_worker_hears_in_the_order_of_the_commands(stage: Stage) -> None:
    for command in (ADMIT, ABORT, PREFETCH):
        assert await stage.courier.carry_out(command) is None
    heard = await stage.heard(stage.worker, 3)
    assert [type(message) for message in heard] == [
        SequenceAdmitted,
        SequenceAborted,
        AdapterPrefetchRequested,
    ]


async def test_a_gateway_hears_of_a_failure_before_the_broker_forgets_the_request(
    stage: Stage,
) -> None:
    await stage.courier.carry_out(FAIL)
    (failed,) = await stage.heard(stage.gateway, 1)
    assert isinstance(failed, RequestFailed)
    assert stage.letter.num_acks == 0
    await stage.courier.carry_out(Done(request_id="r1", attempt=0))
    assert stage.letter.num_acks == 1


@pytest.mark.parametrize("command", [ADMIT, ABORT, PREFETCH])
async def test_a_worker_without_a_queue_is_gone(
    stage: Stage, command: Admit | AbortSequence | Prefetch
) -> None:
    await stage.listening.aclose()
    gone = await stage.courier.carry_out(command)
    assert isinstance(gone, WorkerGone)
    assert gone.worker_id == "w1"


async def test_a_worker_that_does_not_read_its_messages_is_gone(stage: Stage) -> None:
    for _ in range(worker_queue("w1").max_length):
        await stage.courier.carry_out(ABORT)
    gone = await stage.courier.carry_out(ADMIT)
    assert isinstance(gone, WorkerGone)


async def test_a_gateway_that_is_gone_is_no_reason_to_stop(stage: Stage) -> None:
    await stage.listening.aclose()
    assert await stage.courier.carry_out(FAIL) is None


async def test_a_command_is_tried_until_the_broker_is_back(stage: Stage) -> None:
    stage.bus.num_failures = 3
    for command in (ADMIT, ABORT):
        await stage.courier.carry_out(command)
    heard = await stage.heard(stage.worker, 2)
    assert [type(message) for message in heard] == [SequenceAdmitted, SequenceAborted]
    assert stage.bus.num_attempts == 5


async def test_at_stop_a_command_that_cannot_be_carried_out_raises(stage: Stage) -> None:
    stage.bus.num_failures = 1000
    stage.stop.set()
    with pytest.raises(BusUnavailable):
        await stage.courier.carry_out(FAIL)
    assert stage.letter.num_acks == 0
