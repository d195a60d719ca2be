"""What only the in-process bus promises; the rest is in tests/contract."""

import asyncio

from anole_shared.bus_memory import MemoryBus
from tests.traffic import durable, message, publish, take, take_numbers


async def test_a_message_is_handed_over_as_the_object_it_is() -> None:
    bus, queue, sent = MemoryBus(), durable(), message(1)
    await bus.publish(queue, sent, {})
    async with bus.consume(queue, prefetch=1) as deliveries:
        [delivery] = await take(deliveries, 1)
    assert delivery.message is sent


async def test_headers_are_those_of_the_moment_of_publishing() -> None:
    bus, queue, headers = MemoryBus(), durable(), {"traceparent": "a"}
    await bus.publish(queue, message(1), headers)
    headers["traceparent"] = "b"
    async with bus.consume(queue, prefetch=1) as deliveries:
        [delivery] = await take(deliveries, 1)
    assert delivery.headers == {"traceparent": "a"}


async def test_a_backlog_does_not_keep_other_tasks_from_running() -> None:
    bus, queue = MemoryBus(), durable()
    await publish(bus, queue, *range(100))
    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while turns < 100:
            turns += 1
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks, bus.consume(queue, prefetch=1) as deliveries:
        tasks.create_task(somebody_else())
        await take_numbers(deliveries, 100)
        assert turns > 50


async def test_what_is_given_back_has_its_place_even_in_a_full_queue() -> None:
    bus, queue = MemoryBus(), durable(max_length=2)
    await publish(bus, queue, 1, 2)
    async with bus.consume(queue, prefetch=2) as deliveries:
        await take(deliveries, 2)
        await publish(bus, queue, 3, 4)
    async with bus.consume(queue, prefetch=9) as deliveries:
        assert await take_numbers(deliveries, 4) == [1, 2, 3, 4]
