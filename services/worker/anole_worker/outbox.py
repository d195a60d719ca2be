"""What the worker says, kept in order and kept until the broker takes it."""

import asyncio
import logging
from collections.abc import Mapping

from anole_shared.bus import Bus
from anole_shared.errors import BusUnavailable, QueueFull, Unroutable
from anole_shared.messages import Message
from anole_shared.topology import Queue

log = logging.getLogger(__name__)

_RETRY_S = 0.5


class Outbox:
    """A bounded line of messages between the engine, which must not wait, and the bus, which may.

    While the broker is away the line fills; once it is full the engine waits as well, so that
    nothing is lost and memory stays bounded.
    """

    def __init__(self, bus: Bus, *, max_length: int = 10_000) -> None:
        self._bus = bus
        self._line: asyncio.Queue[tuple[Queue, Message, Mapping[str, str]]] = asyncio.Queue(
            max_length
        )
        self._num_put = 0
        self._num_handed_over = 0

    async def put(
        self, queue: Queue, message: Message, headers: Mapping[str, str] | None = None
    ) -> int:
        """Say message, after all that was put before; waits where the line is full.

        Returns its number, counted from 1.
        """
        await self._line.put((queue, message, headers or {}))
        self._num_put += 1
        return self._num_put

    def has_handed_over(self, number: int) -> bool:
        """Whether the message of that number, and all before it, have left."""
        return number <= self._num_handed_over

    async def run(self) -> None:
        """Hand messages over, in order, for ever."""
        while True:
            queue, message, headers = await self._line.get()
            await self._hand_over(queue, message, headers)
            self._line.task_done()
            self._num_handed_over += 1

    async def finish(self, queue: Queue, last: Message, within_s: float) -> None:
        """Say the last message, and wait until all is handed over or the time is up."""
        try:
            async with asyncio.timeout(within_s):
                await self.put(queue, last)
                await self._line.join()
        except TimeoutError:
            log.warning("%d messages were not handed over in time", self._line.qsize())

    async def _hand_over(self, queue: Queue, message: Message, headers: Mapping[str, str]) -> None:
        is_waiting = False
        while True:
            try:
                await self._bus.publish(queue, message, headers)
            except Unroutable:
                log.warning("nobody listens on %s any more; %s dropped", queue.name, message.type)
            except (BusUnavailable, QueueFull) as fault:
                if not is_waiting:
                    log.warning("cannot publish, trying on: %s", fault)
                is_waiting = True
                await asyncio.sleep(_RETRY_S)
                continue
            return
