"""The bus over RabbitMQ: one queue of the broker for each queue of topology.

All messages go through the default exchange, whose routing key is the queue's name.

- A durable queue is a quorum queue.
- Any other is a classic queue that the broker deletes when its consumer is gone. To the broker it
  is durable all the same, because RabbitMQ 4.3 refuses queues that are neither durable nor
  exclusive; the messages in it are transient.

A full queue refuses its publisher (reject-publish), and one consumer at a time is served
(x-single-active-consumer). Consuming has a connection of its own: when the broker runs short of
memory it stops reading from connections that publish, and acknowledgements must still get through.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from aio_pika import Message as AmqpMessage
from aio_pika import connect_robust
from aio_pika.abc import (
    AbstractRobustChannel,
    AbstractRobustConnection,
    DeliveryMode,
)
from aio_pika.exceptions import (
    CONNECTION_EXCEPTIONS,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    PublishError,
)
from aiormq.abc import AbstractChannel
from pamqp.common import FieldValue

from anole_shared.bus import Delivery, Headers
from anole_shared.bus_amqp_consumer import SCHEMA_HEADER, Incoming, answer, unavailable
from anole_shared.codec import SCHEMA_VERSION, encode
from anole_shared.errors import BusUnavailable, ConfigurationError, QueueFull, Unroutable
from anole_shared.messages import Message
from anole_shared.topology import Queue

log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

HEARTBEAT_S = 5
CONNECT_TIMEOUT_S = 10
RECONNECT_S = 1

EXPIRES_MS = 10_000
"""A queue that is not durable goes too when nobody consumed it for so long: its consumer died
between declaring and consuming, or the broker restarted."""

CONSUMER_TIMEOUT_MS = 24 * 3600 * 1000
"""How long a message may be out unacknowledged: requests are, until they have ended. RabbitMQ
before 3.12 ignores this and redelivers after half an hour."""

DELIVERY_LIMIT = 1_000_000
"""RabbitMQ 4 would drop a message after 20 deliveries; schedulers may restart more often."""


class AmqpBus:
    """A client of one broker, whose connections are mended when they break."""

    def __init__(
        self, address: str, *, publishing: "_Publishing", consuming: AbstractRobustConnection
    ) -> None:
        """Use connect()."""
        self._address = address
        self._publishing = publishing
        self._consuming = consuming
        self._incoming: set[Incoming] = set()
        self._declared: set[str] = set()
        self._declaring = asyncio.Lock()
        self._asking: set[asyncio.Task[Any]] = set()
        self._is_closed = False
        for connection in (publishing.connection, consuming):
            connection.close_callbacks.add(self._on_lost)
            connection.reconnect_callbacks.add(self._on_back)
        for channel in publishing.channels:
            channel.reopen_callbacks.add(self._on_reopened)

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Connect to the broker at url.

        Raises:
            ConfigurationError: nobody answers there, or refuses us; says what to check.
        """
        address = _address(url)
        try:
            async with AsyncExitStack() as undo:
                publishing = await undo.enter_async_context(await _connect(url, "publishing"))
                consuming = await undo.enter_async_context(await _connect(url, "consuming"))
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    channels = await _Publishing.open(publishing)
                undo.pop_all()
        except CONNECTION_EXCEPTIONS as fault:
            raise ConfigurationError(
                f"no connection to RabbitMQ at {address} ({str(fault) or type(fault).__name__}): "
                "is RabbitMQ running, and are user, password and virtual host right? "
                "check ANOLE_AMQP_URL"
            ) from None
        return cls(address, publishing=channels, consuming=consuming)

    @property
    def is_connected(self) -> bool:
        return (
            not self._is_closed and self._publishing.is_open and self._consuming.connected.is_set()
        )

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        self._check_connected()
        body = AmqpMessage(
            encode(message),
            content_type="application/json",
            type=message.type,
            headers={**headers, SCHEMA_HEADER: SCHEMA_VERSION},
            delivery_mode=DeliveryMode.PERSISTENT if queue.durable else DeliveryMode.NOT_PERSISTENT,
        )
        async with answer(self._address):
            # Whoever waits here for a declaration stays ahead of all who come later; from here to
            # the broker there are only locks and queues that are first come, first served.
            async with self._declaring:
                if queue.durable and queue.name not in self._declared:
                    await self._to_the_end(self._declare(queue))
            try:
                await self._publishing.send(queue, body)
            except PublishError:
                raise Unroutable(
                    f"queue {queue.name} does not exist: its consumer is gone"
                ) from None
            except DeliveryError:
                raise QueueFull(
                    f"queue {queue.name} is at its limit of {queue.max_length} messages"
                ) from None

    @asynccontextmanager
    async def consume(
        self, queue: Queue, *, prefetch: int, on_gap: Callable[[], None] | None = None
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        self._check_connected()
        incoming = Incoming(
            queue, prefetch, self._address, on_gap=on_gap, is_connected=lambda: self.is_connected
        )
        channel = self._consuming.channel(publisher_confirms=False)

        async def go_on(_channel: object) -> None:
            # The context may be left in the very moment in which the library restores the channel.
            if incoming.is_stopped:
                await channel.close()
            else:
                incoming.follow(await channel.get_underlay_channel())

        channel.reopen_callbacks.add(go_on)
        try:
            async with answer(self._address):
                await self._to_the_end(self._declare(queue))
                await channel.initialize()
                incoming.follow(await channel.get_underlay_channel())
                await channel.set_qos(prefetch_count=prefetch)
                declared = await channel.declare_queue(
                    queue.name,
                    durable=True,
                    auto_delete=not queue.durable,
                    arguments=_arguments(queue),
                )
                await declared.consume(incoming.push)
            self._incoming.add(incoming)
            yield incoming
        finally:
            self._incoming.discard(incoming)
            incoming.stop()
            await self._leave(channel, incoming)

    async def exists(self, queue: Queue) -> bool:
        self._check_connected()
        async with answer(self._address):
            return await self._to_the_end(self._is_there(queue))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for incoming in self._incoming:
            incoming.stop()
        for connection in (self._publishing.connection, self._consuming):
            with suppress(BusUnavailable):
                async with answer(self._address):
                    await connection.close()

    async def _leave(self, channel: AbstractRobustChannel, incoming: Incoming) -> None:
        """Close the channel, which returns everything unacknowledged at once and in order.

        Cancelling the consumer before that would give newer messages to the next one first.
        """
        with suppress(BusUnavailable):
            async with answer(self._address):
                await incoming.settled()
                await channel.close()

    async def _to_the_end(self, asking: Coroutine[None, None, AnswerT]) -> AnswerT:
        """Ask the broker, to the end even if whoever waits for that is cancelled.

        The library's channel, given up half way, costs the whole connection now and then: it sends
        more on a channel that the broker does not know any more.
        """
        task = asyncio.create_task(asking)  # noqa: TID251 - outlives its caller; kept below
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return await asyncio.shield(task)

    async def _is_there(self, queue: Queue) -> bool:
        async with self._channel_for_once() as channel:
            try:
                await channel.queue_declare(queue.name, passive=True)
            except ChannelNotFoundEntity:
                return False
            return True

    async def _declare(self, queue: Queue) -> None:
        async with self._channel_for_once() as channel:
            try:
                await channel.queue_declare(
                    queue.name,
                    durable=True,
                    auto_delete=not queue.durable,
                    arguments=_arguments(queue),
                )
            except ChannelPreconditionFailed:
                raise ConfigurationError(
                    f"RabbitMQ at {self._address} has a queue {queue.name} with other settings, "
                    f"made by another version of Anole: run `rabbitmqctl delete_queue "
                    f"{queue.name}`, or name another virtual host in ANOLE_AMQP_URL"
                ) from None
        self._declared.add(queue.name)

    @asynccontextmanager
    async def _channel_for_once(self) -> AsyncIterator[AbstractChannel]:
        """Closed afterwards: the broker closes the channel of a request that it refuses."""
        transport = self._publishing.connection.transport
        if transport is None:
            raise ConnectionError("not connected")
        channel = await transport.connection.channel(publisher_confirms=False)
        try:
            yield channel
        finally:
            await channel.close()

    def _check_connected(self) -> None:
        if not self.is_connected:
            raise unavailable(self._address, "closed" if self._is_closed else "not connected")

    def _on_lost(self, _sender: object, fault: BaseException | None) -> None:
        if not self._is_closed:
            reason = str(fault) or "no heartbeat"
            log.warning("lost RabbitMQ at %s (%s); reconnecting", self._address, reason)

    def _on_back(self, sender: object) -> None:
        self._declared.clear()
        log.info("connected to RabbitMQ at %s again", self._address)
        self._on_reopened(sender)

    def _on_reopened(self, _sender: object) -> None:
        for incoming in self._incoming:
            incoming.wake()


class _Publishing:
    """The connection that publishes, with a channel for either kind of queue."""

    def __init__(
        self,
        connection: AbstractRobustConnection,
        *,
        confirming: AbstractRobustChannel,
        plain: AbstractRobustChannel,
    ) -> None:
        self.connection = connection
        self._confirming = confirming
        self._plain = plain

    @classmethod
    async def open(cls, connection: AbstractRobustConnection) -> Self:
        confirming = connection.channel(on_return_raises=True)
        plain = connection.channel(publisher_confirms=False)
        await confirming.initialize()
        await plain.initialize()
        return cls(connection, confirming=confirming, plain=plain)

    @property
    def channels(self) -> tuple[AbstractRobustChannel, AbstractRobustChannel]:
        return self._confirming, self._plain

    @property
    def is_open(self) -> bool:
        is_broken = any(channel.is_closed for channel in self.channels)
        return self.connection.connected.is_set() and not is_broken

    async def send(self, queue: Queue, body: AmqpMessage) -> None:
        channel = self._confirming if queue.confirmed else self._plain
        await channel.default_exchange.publish(body, queue.name, mandatory=queue.confirmed)


async def _connect(url: str, purpose: str) -> AbstractRobustConnection:
    return await connect_robust(
        url,
        heartbeat=HEARTBEAT_S,
        timeout=CONNECT_TIMEOUT_S,
        reconnect_interval=RECONNECT_S,
        client_properties={"connection_name": f"anole {purpose}"},
    )


def _address(url: str) -> str:
    """host:port of url, to be shown to people: the whole holds a password."""
    try:
        parts = urlsplit(url)
        default_port = {"amqp": 5672, "amqps": 5671}[parts.scheme]
        port = parts.port or default_port
    except (KeyError, ValueError):
        raise ConfigurationError(
            "ANOLE_AMQP_URL is no address of a RabbitMQ: "
            "write amqp://user:password@host:5672/ (amqps:// for TLS)"
        ) from None
    return f"{parts.hostname or 'localhost'}:{port}"


def _arguments(queue: Queue) -> dict[str, FieldValue]:
    arguments: dict[str, FieldValue] = {
        "x-max-length": queue.max_length,
        "x-overflow": "reject-publish",
        "x-single-active-consumer": True,
    }
    if queue.durable:
        return arguments | {
            "x-queue-type": "quorum",
            "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
            "x-delivery-limit": DELIVERY_LIMIT,
        }
    return arguments | {"x-queue-type": "classic", "x-expires": EXPIRES_MS}
