"""How services hand each other messages: the contract that both implementations keep.

`bus_memory` runs inside one process; `bus_amqp` is RabbitMQ. One test suite checks both.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from anole_shared.messages import Message
from anole_shared.topology import Queue

Headers = Mapping[str, str]
"""Carried beside a message: W3C trace context (traceparent, tracestate)."""


class Delivery(Protocol):
    """One message as its consumer gets it."""

    @property
    def message(self) -> Message: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before: then the handler must be idempotent."""
        ...

    async def ack(self) -> None:
        """Forget the message: its effect is durable.

        Idempotent. Does nothing on an unacknowledged queue, nor after the connection that delivered
        the message is gone: it comes again then.
        """
        ...

    async def requeue(self) -> None:
        """Give the message back, to be delivered again, here or elsewhere."""
        ...


class Bus(Protocol):
    """Hands messages to queues and out of them.

    Messages of one publisher to one queue arrive in the order in which publish() was called.
    """

    @property
    def is_connected(self) -> bool: ...

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        """Put message at the end of queue.

        Raises:
            BusUnavailable: no connection; nothing is known of the message.
            QueueFull: a confirmed queue is at its limit and refused it.
            Unroutable: a confirmed queue that does not exist (a durable one is made at need).
        """
        ...

    def consume(
        self, queue: Queue, *, prefetch: int, on_gap: Callable[[], None] | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        """Declare queue and receive from it, in order, while the context is open.

        At most prefetch messages are out and unacknowledged at a time. Where a connection is lost
        the iterator goes on after reconnecting; what was unacknowledged comes again. A body that is
        no message is logged and dropped, never delivered. Leaving the context returns what is
        unacknowledged to the queue, and removes a queue that is not durable.
        A durable queue serves one consumer at a time; others wait for their turn. After close()
        the iteration ends.

        Where messages of an unacknowledged queue may have been lost with a connection, the iterator
        calls on_gap: behind what it received before, ahead of what it receives now, and not before
        the bus is connected again. It must not block; what it raises, the iterator raises.
        """
        ...

    async def exists(self, queue: Queue) -> bool:
        """Whether the queue is there: one that is not durable goes with its consumer.

        Raises:
            BusUnavailable: no connection; nothing is known of the queue.
        """
        ...

    async def close(self) -> None:
        """Stop everything; idempotent."""
        ...
