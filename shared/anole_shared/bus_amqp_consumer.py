"""The receiving half of the bus over RabbitMQ: pushed by the broker, taken by a service."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Self

from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelInvalidStateError

from anole_shared.bus import Delivery, Headers
from anole_shared.codec import decode
from anole_shared.errors import BusUnavailable, MessageError
from anole_shared.messages import Message
from anole_shared.topology import Queue

log = logging.getLogger(__name__)

SCHEMA_HEADER = "anole-schema"
"""The AMQP header that holds the sender's SCHEMA_VERSION."""

ANSWER_TIMEOUT_S = 5.0
"""How long the broker may take over anything that is asked of it."""


class Incoming:
    """What the broker has pushed to one consumer, and the iterator over it.

    Messages of an unacknowledged queue are acknowledged here, some at a time, after they were
    handed out: so prefetch bounds them too. None of them is handed out twice.
    """

    def __init__(
        self,
        queue: Queue,
        prefetch: int,
        address: str,
        *,
        on_gap: Callable[[], None] | None,
        is_connected: Callable[[], bool],
    ) -> None:
        """is_connected: whether on_gap may be called; wake() tells when that may have changed."""
        self.is_stopped = False
        self._queue = queue
        self._address = address
        self._on_gap = None if queue.acknowledged else on_gap
        self._is_connected = is_connected
        self._channel: object = None
        self._acknowledge_every = max(1, prefetch // 2)
        self._num_taken = 0
        self._due: AbstractIncomingMessage | None = None
        # None is a gap. The last one cannot fall out: behind it are prefetch messages at most.
        self._pushed: deque[AbstractIncomingMessage | None] = deque(maxlen=2 * prefetch + 1)
        self._wake = asyncio.Event()
        self._settling = asyncio.Lock()

    async def push(self, message: AbstractIncomingMessage) -> None:
        """Take one message from the library, which calls this in the broker's order."""
        # The first messages of a channel may come before the word that it is open.
        with suppress(ChannelInvalidStateError):
            self.follow(message.channel)
        while self._pushed and self._comes_again(self._pushed[0]):
            self._pushed.popleft()
        self._pushed.append(message)
        self._wake.set()

    def follow(self, channel: object) -> None:
        """Receive over channel from now on; there is a gap if there was another one before."""
        if channel is self._channel:
            return
        is_first, self._channel = self._channel is None, channel
        is_known = bool(self._pushed) and self._pushed[-1] is None
        if self._on_gap is not None and not is_first and not is_known:
            self._pushed.append(None)
            self._wake.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        while not self.is_stopped:
            if self._due is not None:
                due, self._due = self._due, None
                await self.settle(partial(due.ack, multiple=True))
            elif self._may_take():
                pushed = self._pushed.popleft()
                if pushed is None:
                    self._tell_gap()
                elif (delivery := await self._take(pushed)) is not None:
                    return delivery
            else:
                self._wake.clear()
                await self._wake.wait()
        raise StopAsyncIteration

    def stop(self) -> None:
        """End the iterator; what was handed out is settled no more."""
        self.is_stopped = True
        self._wake.set()

    def wake(self) -> None:
        """Look again whether a gap may be told."""
        self._wake.set()

    async def settle(self, verdict: Callable[[], Awaitable[None]]) -> None:
        """Tell the broker what became of a message; nothing once its channel is gone."""
        async with self._settling:
            if not self.is_stopped:
                with suppress(BusUnavailable):
                    async with answer(self._address):
                        await verdict()

    async def settled(self) -> None:
        """Wait until no verdict is half way to the broker.

        Had its channel been closed by then, the broker would close the whole connection.
        """
        async with self._settling:
            return

    def _may_take(self) -> bool:
        return bool(self._pushed) and (self._pushed[0] is not None or self._is_connected())

    def _tell_gap(self) -> None:
        if self._on_gap is not None:
            self._on_gap()

    async def _take(self, message: AbstractIncomingMessage) -> "AmqpDelivery | None":
        if self._comes_again(message):
            return None
        if not self._queue.acknowledged:
            self._num_taken += 1
            if self._num_taken % self._acknowledge_every == 0:
                self._due = message
            if message.redelivered:
                return None
        try:
            return AmqpDelivery(self, message, is_settled=not self._queue.acknowledged)
        except MessageError as fault:
            log.error("%s: dropped a message: %s", self._queue.name, fault)
            if self._queue.acknowledged:
                await self.settle(partial(message.reject, requeue=False))
            return None

    def _comes_again(self, message: AbstractIncomingMessage | None) -> bool:
        if message is None or not self._queue.acknowledged:
            return False
        try:
            return message.channel.is_closed
        except ChannelInvalidStateError:
            return True


class AmqpDelivery:
    """Raises MessageError where the body is no message of ours."""

    def __init__(
        self, incoming: Incoming, raw: AbstractIncomingMessage, *, is_settled: bool
    ) -> None:
        version = raw.headers.get(SCHEMA_HEADER)
        if not isinstance(version, int):
            raise MessageError(f"it has no header {SCHEMA_HEADER}: not sent by Anole")
        self.message: Message = decode(raw.body, schema_version=version)
        self.headers: Headers = {
            name: value for name, value in raw.headers.items() if isinstance(value, str)
        }
        self.redelivered = bool(raw.redelivered)
        self._incoming = incoming
        self._raw = raw
        self._is_settled = is_settled

    async def ack(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            await self._incoming.settle(self._raw.ack)

    async def requeue(self) -> None:
        if not self._is_settled:
            self._is_settled = True
            await self._incoming.settle(partial(self._raw.reject, requeue=True))


@asynccontextmanager
async def answer(address: str) -> AsyncIterator[None]:
    """Whatever goes wrong with the connection in here is BusUnavailable, and soon.

    Who cancels the task meanwhile cancels it. The library does not see to that: when it closes a
    channel it may raise an error of the connection instead, or nothing at all.
    """
    task = asyncio.current_task()
    num_cancels = task.cancelling() if task else 0

    def is_cancelled() -> bool:
        return task is not None and task.cancelling() > num_cancels

    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield
    except CONNECTION_EXCEPTIONS as fault:
        if is_cancelled():
            raise asyncio.CancelledError from fault
        raise unavailable(address, type(fault).__name__) from fault
    except asyncio.CancelledError:
        # The library too cancels what waits on a connection that it gives up.
        if task is None or is_cancelled():
            raise
        raise unavailable(address, "connection lost") from None
    if is_cancelled():
        raise asyncio.CancelledError


def unavailable(address: str, reason: str) -> BusUnavailable:
    """The error of a bus whose broker at address cannot be had."""
    return BusUnavailable(
        f"no answer from RabbitMQ at {address} ({reason}); "
        "the connection is mended once RabbitMQ is back"
    )
