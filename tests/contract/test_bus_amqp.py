"""What only a bus with a network can get wrong: lost connections, refusals, foreign bodies."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import aio_pika
import pytest

from anole_shared import bus_amqp_consumer
from anole_shared.bus_amqp import AmqpBus
from anole_shared.bus_amqp_consumer import SCHEMA_HEADER
from anole_shared.codec import SCHEMA_VERSION, encode
from anole_shared.errors import BusUnavailable, ConfigurationError, QueueFull
from anole_shared.topology import Queue
from tests.servers import RabbitMQ
from tests.traffic import (
    PATIENCE_S,
    durable,
    failure_of,
    fleeting,
    message,
    number_of,
    publish,
    round_trips,
    take,
    take_numbers,
    until,
    until_accepted,
)
from tests.wire import Wire

pytestmark = pytest.mark.integration


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AmqpBus]:
    bus = await AmqpBus.connect(url)
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
async def bus(rabbitmq: RabbitMQ) -> AsyncIterator[AmqpBus]:
    async with connected(rabbitmq.url) as bus:
        yield bus


@pytest.fixture
async def wire(rabbitmq: RabbitMQ) -> AsyncIterator[Wire]:
    async with Wire(rabbitmq.port) as wire:
        yield wire


@pytest.fixture
async def frail(wire: Wire) -> AsyncIterator[AmqpBus]:
    """A bus whose connections the test can break."""
    async with connected(f"amqp://guest:guest@127.0.0.1:{wire.port}/") as bus:
        yield bus


async def test_a_consumer_goes_on_after_its_connection_was_lost(
    bus: AmqpBus, frail: AmqpBus, wire: Wire
) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2, 3, 4)
    async with frail.consume(queue, prefetch=4) as deliveries:
        one, two, three = await take(deliveries, 3)
        await one.ack()
        await round_trips(frail)  # now the fourth is here too, but not taken
        wire.cut()
        await until(lambda: not frail.is_connected)
        await two.ack()  # too late, and harmless
        await publish(bus, queue, 5)
        wire.mend()
        again = await take(deliveries, 4)
        assert [number_of(delivery) for delivery in again] == [2, 3, 4, 5]
        assert [delivery.redelivered for delivery in again] == [True, True, True, False]
        await three.ack()  # of the old connection: must not settle the new delivery
        await three.requeue()
        for delivery in again:
            await delivery.ack()
        await until(lambda: frail.is_connected)
        await publish(frail, queue, 6)
        assert await take_numbers(deliveries, 1) == [6]


async def test_without_a_connection_publishing_fails_at_once(frail: AmqpBus, wire: Wire) -> None:
    queue = durable()
    await publish(frail, queue, 1)
    wire.cut()
    await until(lambda: not frail.is_connected)
    async with asyncio.timeout(1):
        with pytest.raises(BusUnavailable, match=f"127.0.0.1:{wire.port}"):
            await publish(frail, queue, 2)
        with pytest.raises(BusUnavailable):
            async with frail.consume(queue, prefetch=1):
                pass


async def test_what_is_being_published_when_the_connection_goes_fails_and_does_not_hang(
    frail: AmqpBus, wire: Wire
) -> None:
    queue = durable()
    await publish(frail, queue, 0)
    wire.hold()
    async with asyncio.TaskGroup() as tasks:
        publishers = [tasks.create_task(failure_of(frail, queue, n)) for n in range(1, 20)]
        await asyncio.sleep(0.05)
        wire.cut()
        wire.release()
    assert {type(publisher.result()) for publisher in publishers} == {BusUnavailable}


async def test_a_broker_that_does_not_answer_fails_the_publisher_in_time(
    frail: AmqpBus, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = durable()
    await publish(frail, queue, 0)
    wire.hold()
    with monkeypatch.context() as shortened:
        shortened.setattr(bus_amqp_consumer, "ANSWER_TIMEOUT_S", 0.2)
        assert isinstance(await failure_of(frail, queue, 1), BusUnavailable)
    wire.release()
    await publish(frail, queue, 2)


async def test_closing_the_bus_fails_what_is_being_published(frail: AmqpBus, wire: Wire) -> None:
    queue = durable()
    await publish(frail, queue, 0)
    async with asyncio.TaskGroup() as tasks:
        publishers = [tasks.create_task(failure_of(frail, queue, n)) for n in range(1, 60)]
        await asyncio.sleep(0)
        await frail.close()
    assert {type(publisher.result()) for publisher in publishers} <= {BusUnavailable, type(None)}


async def test_a_connection_given_up_for_want_of_heartbeats_fails_its_publishers(
    frail: AmqpBus, wire: Wire
) -> None:
    queue = durable()
    await publish(frail, queue, 0)
    wire.hold()
    async with asyncio.TaskGroup() as tasks:
        publishers = [tasks.create_task(failure_of(frail, queue, n)) for n in range(1, 20)]
        await asyncio.sleep(0.05)
        transport = frail._publishing.connection.transport
        assert transport is not None
        # What the library does after 18 s of silence; whoever waits for an answer is cancelled.
        transport.connection._reader_task.cancel()  # type: ignore[attr-defined]
    assert {type(publisher.result()) for publisher in publishers} == {BusUnavailable}
    wire.release()


async def test_who_is_cancelled_while_asking_the_broker_ends(bus: AmqpBus) -> None:
    queue = durable()
    await publish(bus, queue, 0)
    num_turns, was_in_time = 0, True
    while was_in_time:
        asking = asyncio.create_task(bus.exists(queue))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        was_in_time = asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled() if was_in_time else asking.result()
        num_turns += 1
    assert num_turns > 5


async def test_acknowledging_while_leaving_does_not_cost_the_connection(
    bus: AmqpBus, caplog: pytest.LogCaptureFixture
) -> None:
    queue = durable()
    await publish(bus, queue, *range(100))
    async with asyncio.TaskGroup() as tasks, bus.consume(queue, prefetch=100) as deliveries:
        for delivery in await take(deliveries, 100):
            tasks.create_task(delivery.ack())
        await asyncio.sleep(0)
    await publish(bus, queue, 100)
    async with bus.consume(queue, prefetch=1) as deliveries:
        await take(deliveries, 1)
    assert "lost RabbitMQ" not in caplog.text


async def test_an_unacknowledged_queue_comes_back_with_its_consumer(
    bus: AmqpBus, frail: AmqpBus, wire: Wire
) -> None:
    queue = fleeting()
    async with frail.consume(queue, prefetch=10) as deliveries:
        await publish(bus, queue, 1)
        assert await take_numbers(deliveries, 1) == [1]
        wire.cut()
        await until(lambda: not frail.is_connected)
        wire.mend()
        await until_accepted(bus, queue, 2)
        assert await take_numbers(deliveries, 1) == [2]


async def test_a_gap_is_told_between_what_came_before_and_after_it(
    bus: AmqpBus, frail: AmqpBus, wire: Wire
) -> None:
    queue = fleeting()
    heard: list[str] = []

    def note_gap() -> None:
        heard.append(f"gap, connected: {frail.is_connected}")

    async with frail.consume(queue, prefetch=1, on_gap=note_gap) as deliveries:
        await publish(bus, queue, 1)
        await round_trips(frail)  # now the first is here, but not taken
        wire.cut()
        await until(lambda: not frail.is_connected)
        wire.mend()
        await until(lambda: frail.is_connected)
        await until_accepted(bus, queue, 2)
        for _ in range(2):
            heard += map(str, await take_numbers(deliveries, 1))
    assert heard == ["1", "gap, connected: True", "2"]


async def test_a_gap_is_told_though_nothing_comes_behind_it(frail: AmqpBus, wire: Wire) -> None:
    told = asyncio.Event()
    async with (
        frail.consume(fleeting(confirmed=False), prefetch=10, on_gap=told.set) as deliveries,
        asyncio.TaskGroup() as tasks,
    ):
        receiving = tasks.create_task(take(deliveries, 1))
        wire.cut()
        await until(lambda: not frail.is_connected)
        assert not told.is_set()
        wire.mend()
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
        receiving.cancel()


async def test_a_queue_whose_messages_come_again_has_no_gaps(
    bus: AmqpBus, frail: AmqpBus, wire: Wire
) -> None:
    queue = durable()
    gaps: list[None] = []
    async with frail.consume(queue, prefetch=1, on_gap=lambda: gaps.append(None)) as deliveries:
        wire.cut()
        await until(lambda: not frail.is_connected)
        wire.mend()
        await publish(bus, queue, 1)
        assert await take_numbers(deliveries, 1) == [1]
    assert gaps == []


async def test_a_broker_without_its_data_gets_its_queues_again(
    bus: AmqpBus, frail: AmqpBus, wire: Wire, rabbitmq: RabbitMQ
) -> None:
    queue = durable()
    await publish(frail, queue, 1)
    await delete(rabbitmq, queue)
    wire.cut()
    await until(lambda: not frail.is_connected)
    wire.mend()
    await until(lambda: frail.is_connected)
    await publish(frail, queue, 2)
    async with bus.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 1) == [2]


async def delete(rabbitmq: RabbitMQ, queue: Queue) -> None:
    async with await aio_pika.connect(rabbitmq.url) as operator:
        channel = await operator.channel()
        await channel.queue_delete(queue.name)


async def test_a_consumer_that_left_while_the_connection_was_down_does_not_come_back(
    bus: AmqpBus, frail: AmqpBus, wire: Wire
) -> None:
    queue = durable()
    async with frail.consume(queue, prefetch=10):
        wire.cut()
        await until(lambda: not frail.is_connected)
    wire.mend()
    await until(lambda: frail.is_connected)
    await publish(frail, queue, 1)
    async with bus.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 1) == [1]


async def test_a_consumer_that_left_while_it_was_being_restored_does_not_come_back(
    bus: AmqpBus, frail: AmqpBus, wire: Wire
) -> None:
    queue = durable()
    async with frail.consume(queue, prefetch=10):
        wire.cut()
        await until(lambda: not frail._consuming.connected.is_set())
        wire.mend()
        await frail._consuming.connected.wait()  # its channels are not back yet
    await until(lambda: frail.is_connected)
    await publish(bus, queue, 1)
    async with bus.consume(queue, prefetch=10) as deliveries:
        assert await take_numbers(deliveries, 1) == [1]


async def test_a_queue_deleted_on_the_broker_is_made_again_by_its_consumer(
    bus: AmqpBus, rabbitmq: RabbitMQ
) -> None:
    queue = durable()
    async with bus.consume(queue, prefetch=10) as deliveries:
        await publish(bus, queue, 1)
        [one] = await take(deliveries, 1)
        await delete(rabbitmq, queue)
        await until_accepted(bus, queue, 2)
        await one.ack()
        assert await take_numbers(deliveries, 1) == [2]


async def test_durable_messages_outlive_the_broker(bus: AmqpBus, rabbitmq: RabbitMQ) -> None:
    queue = durable()
    await publish(bus, queue, 1, 2)
    async with bus.consume(queue, prefetch=1) as deliveries:
        await take(deliveries, 1)
        rabbitmq.stop()
        await until(lambda: not bus.is_connected)
        rabbitmq.start()
        again = await take(deliveries, 1)
        assert number_of(again[0]) == 1
        assert again[0].redelivered
        await again[0].ack()
        assert await take_numbers(deliveries, 1) == [2]
        await until(lambda: bus.is_connected)
        await publish(bus, queue, 3)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{", {SCHEMA_HEADER: SCHEMA_VERSION}),
        (b'{"type": "request.unheard_of"}', {SCHEMA_HEADER: SCHEMA_VERSION}),
        (encode(message(1)), {SCHEMA_HEADER: SCHEMA_VERSION + 1}),
        (encode(message(1)), {SCHEMA_HEADER: "new"}),
        (encode(message(1)), {}),
    ],
    ids=["no JSON", "unknown type", "other version", "odd version", "no version"],
)
@pytest.mark.parametrize("queue", [durable(), fleeting()], ids=["durable", "fleeting"])
async def test_a_body_that_is_no_message_is_logged_and_dropped(
    bus: AmqpBus,
    rabbitmq: RabbitMQ,
    queue: Queue,
    body: bytes,
    headers: dict[str, str | int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue = replace(queue, name=f"test.{uuid4().hex}")
    async with bus.consume(queue, prefetch=1) as deliveries:
        async with await aio_pika.connect(rabbitmq.url) as stranger:
            channel = await stranger.channel()
            foreign = aio_pika.Message(body, headers=dict(headers))
            await channel.default_exchange.publish(foreign, queue.name)
        await publish(bus, queue, 7)
        [delivery] = await take(deliveries, 1)
        assert number_of(delivery) == 7
        await delivery.ack()
    [dropped] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert queue.name in dropped.message
    if queue.durable:
        await publish(bus, queue, 8)
        async with bus.consume(queue, prefetch=1) as deliveries:
            assert await take_numbers(deliveries, 1) == [8]


async def test_a_queue_of_another_version_is_a_configuration_error(bus: AmqpBus) -> None:
    queue = durable()
    await publish(bus, queue, 1)
    changed = replace(queue, max_length=queue.max_length + 1)
    with pytest.raises(ConfigurationError, match=f"delete_queue {queue.name}"):
        async with bus.consume(changed, prefetch=1):
            pass
    await publish(bus, queue, 2)  # the refusal has broken nothing


async def test_what_was_published_before_closing_arrives(bus: AmqpBus, rabbitmq: RabbitMQ) -> None:
    queue = fleeting(confirmed=False)
    async with bus.consume(queue, prefetch=100) as deliveries:
        async with connected(rabbitmq.url) as brief:
            await publish(brief, queue, *range(50))
        assert await take_numbers(deliveries, 50) == list(range(50))


async def test_a_refused_message_leaves_the_others_alone(bus: AmqpBus) -> None:
    queue, crowded = durable(), durable(max_length=1)
    while await failure_of(bus, crowded, 0) is None:
        pass
    async with asyncio.TaskGroup() as tasks:
        full = [tasks.create_task(failure_of(bus, crowded, n)) for n in range(30)]
        fine = [tasks.create_task(failure_of(bus, queue, n)) for n in range(30)]
    assert {type(task.result()) for task in full} == {QueueFull}
    assert {task.result() for task in fine} == {None}
