"""One thing after another: what arrives goes to the scheduler, what it decides is carried out."""

import logging
from collections import deque

from anole_scheduler.core.commands import Command, RefuseWorker, RequestCommand
from anole_scheduler.core.events import Event, GatewayGone, Recalled, Tick, WorkerGone
from anole_scheduler.core.scheduler import Scheduler
from anole_scheduler.courier import Courier
from anole_scheduler.custody import Custody
from anole_scheduler.mirror import Mirror
from anole_scheduler.translate import event_of
from anole_shared.bus import Delivery
from anole_shared.clock import Clock
from anole_shared.messages import RequestSubmitted, SequenceReturned

log = logging.getLogger(__name__)


class Desk:
    """Only one caller at a time: an event's commands are out before the next event is heard.

    Where a call raises BusUnavailable it was time to stop: nothing more must be acknowledged.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        custody: Custody,
        courier: Courier,
        mirror: Mirror,
        clock: Clock,
    ) -> None:
        self._scheduler = scheduler
        self._custody = custody
        self._courier = courier
        self._mirror = mirror
        self._clock = clock

    async def receive(self, delivery: Delivery) -> None:
        """Act on a message; a request stays unacknowledged until it is done."""
        message = delivery.message
        event = event_of(message, redelivered=delivery.redelivered)
        if event is None:
            log.error(
                "a scheduler does not take %s: whoever sends it is misconfigured", message.type
            )
        if isinstance(message, RequestSubmitted):
            await self._custody.hold(delivery, message, self._scheduler.num_waiting)
        if isinstance(message, SequenceReturned):
            num_waiting = self._scheduler.num_waiting
            self._custody.wait_again(
                message.request_id, message.attempt, message.worker_id, num_waiting
            )
        if event is not None:
            await self._happen(event)
        if not isinstance(message, RequestSubmitted):
            await delivery.ack()

    async def recall(self, recalled: Recalled) -> None:
        """Start from what an earlier scheduler has left."""
        await self._happen(recalled)

    async def notice(self, event: Tick | GatewayGone) -> None:
        """Act on what no message tells."""
        await self._happen(event)

    async def _happen(self, event: Event) -> None:
        events = deque([event])
        while events:
            for command in self._scheduler.handle(events.popleft(), self._clock.now()):
                gone = await self._carry_out(command)
                if gone is not None:
                    events.append(gone)

    async def _carry_out(self, command: Command) -> WorkerGone | None:
        if isinstance(command, RequestCommand):
            return await self._courier.carry_out(command)
        if isinstance(command, RefuseWorker):
            log.error("worker %s gets no requests: %s", command.worker_id, command.reason)
        else:
            self._mirror.apply(command)
        return None
