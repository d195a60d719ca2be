"""The line between the engine and the bus."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from anole_shared.bus import Delivery
from anole_shared.errors import BusError, BusUnavailable, QueueFull, Unroutable
from anole_shared.ids import AdapterId, WorkerId
from anole_shared.messages import AdapterResidencyChanged, Message, Residency
from anole_shared.topology import SCHEDULER, Queue
from anole_worker.outbox import Outbox


class FailingBus:
    """Raises what it is told to, one error a call, then takes messages."""

    is_connected = True

    def __init__(self, *faults: BusError) -> None:
        self.faults = list(faults)
        self.taken: list[Message] = []

    async def publish(self, queue: Queue, message: Message, headers: Mapping[str, str]) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.taken.append(message)

    def consume(
        self, queue: Queue, *, prefetch: int, on_gap: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        raise AssertionError("an outbox does not consume")

    async def close(self) -> None:
        """Nothing to close."""


def message(number: int) -> AdapterResidencyChanged:
    return AdapterResidencyChanged(
        worker_id=WorkerId("w"), adapter_id=AdapterId(f"a{number}"), residency=Residency.RESIDENT
    )


async def hand_over(bus: FailingBus, count: int) -> None:
    outbox = Outbox(bus)
    for number in range(count - 1):
        await outbox.put(SCHEDULER, message(number))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        await outbox.finish(SCHEDULER, message(count - 1), 10)
        running.cancel()


async def test_messages_keep_their_order_through_an_outage() -> None:
    bus = FailingBus(BusUnavailable("gone"), QueueFull("full"))
    await hand_over(bus, 3)
    assert bus.taken == [message(0), message(1), message(2)]


async def test_a_message_to_nobody_is_dropped_and_the_next_one_goes_on() -> None:
    bus = FailingBus(Unroutable("no such queue"))
    await hand_over(bus, 2)
    assert bus.taken == [message(1)]


async def test_a_full_line_makes_the_engine_wait() -> None:
    outbox = Outbox(FailingBus(), max_length=1)
    await outbox.put(SCHEDULER, message(0))
    try:
        async with asyncio.timeout(0.05):
            await outbox.put(SCHEDULER, message(1))
    except TimeoutError:
        return
    raise AssertionError("a second message found room")


async def test_a_full_line_does_not_block_the_stop() -> None:
    outbox = Outbox(FailingBus(), max_length=1)
    await outbox.put(SCHEDULER, message(0))
    async with asyncio.timeout(10):
        await outbox.finish(SCHEDULER, message(1), 0.01)


async def test_a_message_has_left_once_the_bus_has_taken_it() -> None:
    outbox = Outbox(FailingBus())
    first = await outbox.put(SCHEDULER, message(0))
    assert not outbox.has_handed_over(first)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        await outbox.finish(SCHEDULER, message(1), 10)
        assert outbox.has_handed_over(first + 1)
        second = await outbox.put(SCHEDULER, message(2))
        assert not outbox.has_handed_over(second)
        running.cancel()
