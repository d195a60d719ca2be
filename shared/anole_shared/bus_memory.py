"""The bus inside one process: for a deployment without a broker, and for tests.

It belongs to one event loop. Messages are handed over as the objects they are (they are frozen).
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from anole_shared.bus import Delivery, Headers
from anole_shared.errors import BusUnavailable, QueueFull, Unroutable
from anole_shared.messages import Message
from anole_shared.topology import Queue


class MemoryBus:
    """Queues as heaps: what is given back finds its old place before newer messages."""

    def __init__(self) -> None:
        self._waiting_rooms: dict[str, _WaitingRoom] = {}
        self._is_closed = False

    @property
    def is_connected(self) -> bool:
        return not self._is_closed

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        self._check_open()
        room = self._room(queue) if queue.durable else self._waiting_rooms.get(queue.name)
        if room is None:
            if queue.confirmed:
                raise Unroutable(f"queue {queue.name} does not exist: its consumer is gone")
            return
        if len(room.waiting) < queue.max_length:
            room.add(message, dict(headers))
        elif queue.confirmed:
            raise QueueFull(f"queue {queue.name} is at its limit of {queue.max_length} messages")

    @asynccontextmanager
    async def consume(
        self,
        queue: Queue,
        *,
        prefetch: int,
        on_gap: Callable[[], None] | None = None,  # noqa: ARG002 - the contract's
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        """As the contract says; on_gap is never called, for there is no connection to lose."""
        self._check_open()
        room = self._room(queue)
        consumer = _Consumer(room, prefetch=prefetch, acknowledged=queue.acknowledged)
        room.consumers.append(consumer)
        try:
            yield consumer
        finally:
            consumer.leave()
            if not room.consumers and not queue.durable:
                self._waiting_rooms.pop(queue.name, None)

    async def exists(self, queue: Queue) -> bool:
        self._check_open()
        return queue.name in self._waiting_rooms

    async def close(self) -> None:
        self._is_closed = True
        for room in self._waiting_rooms.values():
            for consumer in room.consumers:
                consumer.stop()

    def _check_open(self) -> None:
        if self._is_closed:
            raise BusUnavailable("the bus is closed: this process is stopping")

    def _room(self, queue: Queue) -> "_WaitingRoom":
        return self._waiting_rooms.setdefault(queue.name, _WaitingRoom())


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Envelope:
    sequence: int
    """Its place in the queue; the only field that is compared."""
    message: Message = field(compare=False)
    headers: Headers = field(compare=False)
    redelivered: bool = field(default=False, compare=False)


class _WaitingRoom:
    """One queue: what waits, and who serves it. The first consumer is the active one."""

    def __init__(self) -> None:
        self.waiting: list[_Envelope] = []
        self.consumers: list[_Consumer] = []
        self._next_sequence = 0

    def add(self, message: Message, headers: Headers) -> None:
        envelope = _Envelope(sequence=self._next_sequence, message=message, headers=headers)
        self._next_sequence += 1
        self._put(envelope)

    def give_back(self, envelope: _Envelope) -> None:
        """Put envelope where it was, regardless of the limit."""
        self._put(replace(envelope, redelivered=True))

    def wake_active(self) -> None:
        if self.consumers:
            self.consumers[0].wake.set()

    def _put(self, envelope: _Envelope) -> None:
        heapq.heappush(self.waiting, envelope)
        self.wake_active()


class _Consumer:
    """The iterator that consume() hands out, and what it owes the queue."""

    def __init__(self, room: _WaitingRoom, *, prefetch: int, acknowledged: bool) -> None:
        self.wake = asyncio.Event()
        self._room = room
        self._prefetch = prefetch
        self._acknowledged = acknowledged
        self._unacknowledged: dict[int, _Envelope] = {}
        self._is_stopped = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delivery:
        # A backlog must not keep the loop from everybody else.
        await asyncio.sleep(0)
        while not self._is_stopped:
            if self._may_take():
                return self._take()
            self.wake.clear()
            await self.wake.wait()
        raise StopAsyncIteration

    def settle(self, envelope: _Envelope, *, give_back: bool) -> None:
        """Forget one delivery or return it; nothing if that was done before."""
        # What was given back may be out again, under the same number but as another envelope.
        if self._unacknowledged.get(envelope.sequence) is not envelope:
            return
        del self._unacknowledged[envelope.sequence]
        if give_back:
            self._room.give_back(envelope)
        self.wake.set()

    def leave(self) -> None:
        """Return everything unacknowledged and make room for the next consumer."""
        self.stop()
        self._room.consumers.remove(self)
        for envelope in list(self._unacknowledged.values()):
            self.settle(envelope, give_back=True)
        self._room.wake_active()

    def stop(self) -> None:
        self._is_stopped = True
        self.wake.set()

    def _may_take(self) -> bool:
        return (
            self._room.consumers[0] is self
            and len(self._room.waiting) > 0
            and len(self._unacknowledged) < self._prefetch
        )

    def _take(self) -> "_MemoryDelivery":
        envelope = heapq.heappop(self._room.waiting)
        if self._acknowledged:
            self._unacknowledged[envelope.sequence] = envelope
        return _MemoryDelivery(self, envelope)


class _MemoryDelivery:
    def __init__(self, consumer: _Consumer, envelope: _Envelope) -> None:
        self._consumer = consumer
        self._envelope = envelope

    @property
    def message(self) -> Message:
        return self._envelope.message

    @property
    def headers(self) -> Headers:
        return self._envelope.headers

    @property
    def redelivered(self) -> bool:
        return self._envelope.redelivered

    async def ack(self) -> None:
        self._consumer.settle(self._envelope, give_back=False)

    async def requeue(self) -> None:
        self._consumer.settle(self._envelope, give_back=True)
