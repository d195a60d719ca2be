"""Queues, numbered messages and patience, for tests of the bus."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from uuid import uuid4

from anole_shared.bus import Bus, Delivery
from anole_shared.ids import RequestId
from anole_shared.messages import Message, RequestAborted
from anole_shared.topology import Queue

PATIENCE_S = 30.0
"""Long enough for anything that should happen at all."""


def durable(max_length: int = 1000) -> Queue:
    """Like the scheduler's queue, with a name of its own."""
    return Queue(
        name=f"test.{uuid4().hex}",
        durable=True,
        acknowledged=True,
        confirmed=True,
        max_length=max_length,
    )


def fleeting(*, confirmed: bool = True, max_length: int = 1000) -> Queue:
    """Like a worker's queue or, unconfirmed, like a gateway's."""
    return replace(durable(max_length), durable=False, acknowledged=False, confirmed=confirmed)


def message(number: int) -> Message:
    """A message that number_of() knows again."""
    return RequestAborted(request_id=RequestId(str(number)), reason="test")


def number_of(delivery: Delivery) -> int:
    """What message() was given."""
    assert isinstance(delivery.message, RequestAborted)
    return int(delivery.message.request_id)


async def publish(bus: Bus, queue: Queue, *numbers: int) -> None:
    """Publish one message after the other."""
    for number in numbers:
        await bus.publish(queue, message(number), {})


async def failure_of(bus: Bus, queue: Queue, number: int) -> BaseException | None:
    """Publish, and return what was raised."""
    try:
        await publish(bus, queue, number)
    except (Exception, asyncio.CancelledError) as fault:  # noqa: BLE001 - the caller looks at it
        return fault
    return None


async def until_accepted(bus: Bus, queue: Queue, number: int) -> None:
    """Publish as soon as it is possible."""
    async with asyncio.timeout(PATIENCE_S):
        while await failure_of(bus, queue, number) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def take(deliveries: AsyncIterator[Delivery], count: int) -> list[Delivery]:
    """Receive without acknowledging."""
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(deliveries) for _ in range(count)]


async def take_numbers(deliveries: AsyncIterator[Delivery], count: int) -> list[int]:
    """Receive and acknowledge, one after the other."""
    numbers = []
    for _ in range(count):
        [delivery] = await take(deliveries, 1)
        numbers.append(number_of(delivery))
        await delivery.ack()
    return numbers


async def round_trips(bus: Bus) -> None:
    """Give whatever is on its way the time that several messages need to arrive."""
    queue = fleeting(confirmed=True)
    async with bus.consume(queue, prefetch=1) as deliveries:
        for number in range(5):
            await publish(bus, queue, number)
            await take(deliveries, 1)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
