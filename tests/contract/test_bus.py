"""What anole_shared.bus promises, checked on both implementations."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from anole_shared.bus import Bus
from anole_shared.bus_amqp import AmqpBus
from anole_shared.bus_memory import MemoryBus
from anole_shared.errors import BusUnavailable, QueueFull, Unroutable
from anole_shared.ids import AdapterId, GatewayId, RequestId
from anole_shared.messages import RequestSubmitted, Sampling
from anole_shared.topology import Queue
from tests.traffic import (
    durable,
    fleeting,
    number_of,
    publish,
    round_trips,
    take,
    take_numbers,
    until_accepted,
)


@pytest.fixture(params=["memory", pytest.param("amqp", marks=pytest.mark.integration)])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        bus: Bus = MemoryBus()
    else:
        bus = await AmqpBus.connect(request.getfixturevalue("rabbitmq_url"))
    yield bus
    await bus.close()


@pytest.fixture
async def other(bus: Bus, request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    """Another process' client of the same bus."""
    if isinstance(bus, MemoryBus):
        yield bus
        return
    other = await AmqpBus.connect(request.getfixturevalue("rabbitmq_url"))
    yield other
    await other.close()


async def publish_until_full(bus: Bus, queue: Queue) -> int:
    """Publish 0, 1, ... and return how many were accepted."""
    for number in range(10 * queue.max_length):
        try:
            await publish(bus, queue, number)
        except QueueFull:
            return number
    pytest.fail("the queue has no limit")


async def test_a_message_arrives_as_it_was_sent_with_its_headers(bus: Bus, other: Bus) -> None:
    queue = durable()
    sent = RequestSubmitted(
        request_id=RequestId("r1"),
        attempt=2,
        gateway_id=GatewayId("g1"),
        adapter_id=AdapterId("schön/adapter"),
        prompt_token_ids=(1, 2, 49_151),
        max_tokens=16,
        sampling=Sampling(temperature=0.7, seed=2**63 - 1),
    )
    headers = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "tracestate": "x=1,y=é"}
    async with bus.consume(queue, prefetch=10) as deliveries:
        await other.publish(queue, sent, headers)
        [delivery] = await take(deliveries, 1)
        assert delivery.message == sent
        assert delivery.headers == headers
        assert not delivery.redelivered
        await delivery.ack()


async def test_messages_arrive_in_the_order_of_publishing(bus: Bus, other: Bus) -> None:
    queue = durable()
    await publish(other, queue, *range(100))
    async with bus.consume(queue, prefetch=7) as deliveries:
        assert await take_numbers(deliveries, 100) == list(range(100))


async def test_concurrent_publishers_keep_the_order_in_which_they_called(bus: Bus) -> None:
    queue = durable()
    async with asyncio.TaskGroup() as publishers:
        for number in range(200):
            publishers.create_task(publish(bus, queue, number))
    async with bus.consume(queue, prefetch=50) as deliveries:
        assert await take_numbers(deliveries, 200) == list(range(200))


async def test_a_durable_queue_is_made_by_its_first_publisher(bus: Bus, other: Bus) -> None:
    queue = durable()
    await publish(bus, queue, 1)
    async with other.consume(queue, prefetch=1) as deliveries:
        assert await take_numbers(deliveries, 1) == [1]


async def test_queues_do_not_mix(bus: Bus) -> None:
    first, second = durable(), durable()
    await publish(bus, first, 1)
    await publish(bus, second, 2)
    await publish(bus, first, 3)
    async with (
        bus.consume(first, prefetch=10) as ones,
        bus.consume(second, prefetch=10) as twos,
    ):
        assert await take_numbers(twos, 1) == [2]
        assert await take_numbers(ones, 2) == [1, 3]


async def test_no_more_than_prefetch_messages_are_out_unacknowledged(bus: Bus) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2, 3)
    async with bus.consume(queue, prefetch=2) as deliveries, asyncio.TaskGroup() as tasks:
        first, _second = await take(deliveries, 2)
        third = tasks.create_task(take(deliveries, 1))
        await round_trips(bus)
        assert not third.done()
        await first.ack()
        assert [number_of(delivery) for delivery in await third] == [3]


async def test_what_was_acknowledged_does_not_come_again(bus: Bus, other: Bus) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2, 3)
    async with bus.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 2) == [1, 2]
    async with other.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 1) == [3]


async def test_leaving_returns_what_is_unacknowledged_in_order_before_newer_messages(
    bus: Bus, other: Bus
) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2, 3, 4, 5)
    async with bus.consume(queue, prefetch=4) as deliveries:
        one, two, three = await take(deliveries, 3)
        await two.ack()
        assert [one.redelivered, three.redelivered] == [False, False]
    await publish(bus, queue, 6)
    async with other.consume(queue, prefetch=10) as deliveries:
        again = await take(deliveries, 5)
        assert [number_of(delivery) for delivery in again] == [1, 3, 4, 5, 6]
        assert [again[0].redelivered, again[1].redelivered] == [True, True]
        assert not again[-1].redelivered


async def test_a_cancelled_consumer_returns_its_messages(bus: Bus, other: Bus) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2)
    took = asyncio.Event()

    async def consume_forever() -> None:
        async with bus.consume(queue, prefetch=10) as deliveries:
            async for _ in deliveries:
                took.set()

    async with asyncio.TaskGroup() as tasks:
        consumer = tasks.create_task(consume_forever())
        await took.wait()
        consumer.cancel()
    async with other.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 2) == [1, 2]


async def test_a_requeued_message_is_delivered_again(bus: Bus) -> None:
    queue = durable()
    await publish(bus, queue, 1)
    async with bus.consume(queue, prefetch=1) as deliveries:
        [first] = await take(deliveries, 1)
        await first.requeue()
        [again] = await take(deliveries, 1)
        assert number_of(again) == 1
        assert again.redelivered
        await first.ack()  # settled before: must not acknowledge the second delivery
        await first.requeue()
    async with bus.consume(queue, prefetch=1) as deliveries:
        assert await take_numbers(deliveries, 1) == [1]


async def test_acknowledging_twice_or_too_late_does_no_harm(bus: Bus) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2)
    async with bus.consume(queue, prefetch=10) as deliveries:
        one, two = await take(deliveries, 2)
        await one.ack()
        await one.ack()
        await one.requeue()
    await two.ack()
    await two.requeue()
    async with bus.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 1) == [2]
    assert bus.is_connected


async def test_the_next_consumer_is_served_when_the_first_has_left_and_gets_its_messages_first(
    bus: Bus, other: Bus
) -> None:
    queue = durable()
    async with AsyncExitStack() as first, asyncio.TaskGroup() as tasks:
        deliveries = await first.enter_async_context(bus.consume(queue, prefetch=2))
        async with other.consume(queue, prefetch=10) as standby:
            await publish(bus, queue, 1, 2, 3, 4)
            one, _two = await take(deliveries, 2)
            successor = tasks.create_task(take_numbers(standby, 3))
            await one.ack()
            await round_trips(other)
            assert not successor.done()
            await first.aclose()
            assert await successor == [2, 3, 4]


async def test_the_next_consumer_is_served_when_the_first_leaves_with_nothing_in_hand(
    bus: Bus, other: Bus
) -> None:
    queue = durable()
    async with AsyncExitStack() as first, asyncio.TaskGroup() as tasks:
        deliveries = await first.enter_async_context(bus.consume(queue, prefetch=1))
        async with other.consume(queue, prefetch=1) as standby:
            await publish(bus, queue, 1)
            assert await take_numbers(deliveries, 1) == [1]
            successor = tasks.create_task(take_numbers(standby, 1))
            await publish(bus, queue, 2)
            await round_trips(other)
            assert not successor.done()
            await first.aclose()
            assert await successor == [2]


async def test_a_full_queue_refuses_its_publisher_until_there_is_room(bus: Bus, other: Bus) -> None:
    queue = durable(max_length=3)
    accepted = await publish_until_full(bus, queue)
    assert queue.max_length <= accepted <= queue.max_length + 1  # quorum queues: one more
    async with other.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, accepted) == list(range(accepted))
    await until_accepted(bus, queue, 99)


async def test_a_consumer_that_does_not_keep_up_fills_its_queue(bus: Bus, other: Bus) -> None:
    queue = fleeting(confirmed=True, max_length=10)
    async with bus.consume(queue, prefetch=4) as deliveries:
        accepted = await publish_until_full(other, queue)
        assert queue.max_length <= accepted <= queue.max_length + 4
        numbers = [number_of(delivery) for delivery in await take(deliveries, accepted)]
        assert numbers == list(range(accepted))
        await until_accepted(other, queue, 99)
        assert await take_numbers(deliveries, 1) == [99]


async def test_messages_of_an_unacknowledged_queue_flow_without_acknowledgement(
    bus: Bus, other: Bus
) -> None:
    queue = fleeting(confirmed=False)
    async with bus.consume(queue, prefetch=3) as deliveries:
        await publish(other, queue, *range(50))
        arrived = await take(deliveries, 50)
        assert [number_of(delivery) for delivery in arrived] == list(range(50))
        await arrived[0].ack()
        await arrived[1].requeue()
        await publish(other, queue, 50)
        assert await take_numbers(deliveries, 1) == [50]


async def test_an_unacknowledged_message_is_never_handed_out_twice(bus: Bus, other: Bus) -> None:
    queue = fleeting()
    async with AsyncExitStack() as first:
        deliveries = await first.enter_async_context(other.consume(queue, prefetch=10))
        async with bus.consume(queue, prefetch=10) as standby:
            await publish(bus, queue, 1, 2)
            assert await take_numbers(deliveries, 2) == [1, 2]
            await first.aclose()
            await publish(bus, queue, 3)
            assert await take_numbers(standby, 1) == [3]


async def test_a_confirmed_queue_without_its_consumer_is_unroutable(bus: Bus, other: Bus) -> None:
    queue = fleeting(confirmed=True)
    with pytest.raises(Unroutable, match=queue.name):
        await publish(bus, queue, 1)
    async with other.consume(queue, prefetch=10):
        await publish(bus, queue, 2)
    with pytest.raises(Unroutable, match=queue.name):
        await publish(bus, queue, 3)
    async with other.consume(queue, prefetch=10) as deliveries:
        await publish(bus, queue, 4)
        assert await take_numbers(deliveries, 1) == [4]


async def test_an_unconfirmed_queue_without_its_consumer_drops_silently(
    bus: Bus, other: Bus
) -> None:
    queue = fleeting(confirmed=False)
    await publish(bus, queue, 1)
    async with other.consume(queue, prefetch=10) as deliveries:
        await publish(bus, queue, 2)
        assert await take_numbers(deliveries, 1) == [2]


async def test_closing_ends_everything_and_says_so(bus: Bus) -> None:
    queue = durable()
    async with bus.consume(queue, prefetch=1) as deliveries, asyncio.TaskGroup() as tasks:
        rest = tasks.create_task(anext(deliveries, None))
        await round_trips(bus)
        await bus.close()
        assert await rest is None
    assert not bus.is_connected
    with pytest.raises(BusUnavailable):
        await publish(bus, queue, 1)
    with pytest.raises(BusUnavailable):
        async with bus.consume(queue, prefetch=1):
            pass
    await bus.close()


async def test_a_queue_of_one_consumer_is_there_while_it_is(bus: Bus, other: Bus) -> None:
    queue = fleeting()
    assert not await other.exists(queue)
    async with bus.consume(queue, prefetch=1):
        assert await other.exists(queue)
    assert not await other.exists(queue)


async def test_a_durable_queue_is_there_once_somebody_published(bus: Bus, other: Bus) -> None:
    queue = durable()
    assert not await other.exists(queue)
    await publish(bus, queue, 1)
    assert await other.exists(queue)
