"""The scheduler service: its parts put together by hand."""

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator

from anole_scheduler import garbage
from anole_scheduler.core.events import GatewayGone, Tick
from anole_scheduler.core.policies.standard import policies
from anole_scheduler.core.predictor import OnlinePredictor
from anole_scheduler.core.scheduler import Scheduler
from anole_scheduler.courier import Courier
from anole_scheduler.custody import Custody
from anole_scheduler.desk import Desk
from anole_scheduler.gateway_watch import GatewayWatch
from anole_scheduler.mirror import Mirror
from anole_scheduler.settings import SchedulerSettings
from anole_scheduler.tally import Tally
from anole_scheduler.translate import knobs_of, limits_of, prefetch_of
from anole_shared.bus import Delivery
from anole_shared.errors import BusUnavailable
from anole_shared.keys import RENEW_S
from anole_shared.lifecycle import Resources, keep_alive, pause
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.topology import SCHEDULER

log = logging.getLogger(__name__)

_TICK_S = 0.5
_INBOX_LENGTH = 64

_Inbox = asyncio.Queue[Delivery | Tick | GatewayGone]


class SchedulerService:
    """Serves the scheduler's queue while it is the one that the broker chose; else it stands by."""

    name = "scheduler"

    def __init__(
        self,
        common: CommonSettings,  # noqa: ARG002
        settings: SchedulerSettings,
        resources: Resources,
        telemetry: Telemetry,
    ) -> None:
        self.scheduler_id = settings.scheduler_id or f"{socket.gethostname()}-{os.getpid()}"
        self._settings = settings
        self._resources = resources
        self._telemetry = telemetry
        self._predictor = OnlinePredictor()

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Serve until stop; what is unfinished then stays with the broker for the next one."""
        with garbage.looked_for_rarely():
            async with asyncio.TaskGroup() as tasks:
                alive = keep_alive(self._resources, self.name, self.scheduler_id, stop)
                tasks.create_task(alive, name="scheduler liveness")
                while not stop.is_set():
                    await self._reign(ready=ready, stop=stop)

    async def _reign(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Stand by, then serve, until stop or until another scheduler has taken over.

        Then all that is known here is old, and is dropped.
        """
        mirror = Mirror(self._resources.store)
        tally = Tally()
        custody = Custody(self._telemetry.tracer, tally, self._predictor, self._resources.clock)
        desk = Desk(
            scheduler=Scheduler(
                limits_of(self._settings),
                policies(self._settings.policy, knobs_of(self._settings)),
                predictor=self._predictor,
            ),
            custody=custody,
            courier=Courier(self._resources.bus, custody, stop),
            mirror=mirror,
            clock=self._resources.clock,
        )
        try:
            watch = GatewayWatch(self._resources.bus, custody)
            await self._serve(desk, mirror, tally, watch, ready=ready, stop=stop)
        finally:
            custody.close()
        await mirror.flush()

    async def _serve(
        self,
        desk: Desk,
        mirror: Mirror,
        tally: Tally,
        watch: GatewayWatch,
        *,
        ready: asyncio.Event,
        stop: asyncio.Event,
    ) -> None:
        inbox: _Inbox = asyncio.Queue(_INBOX_LENGTH)
        prefetch = prefetch_of(self._settings)
        async with (
            self._resources.bus.consume(SCHEDULER, prefetch=prefetch) as deliveries,
            asyncio.TaskGroup() as tasks,
        ):
            beside = [
                tasks.create_task(mirror.run(), name="scheduler mirror"),
                tasks.create_task(self._show(tally, mirror), name="scheduler figures"),
                tasks.create_task(_collect(deliveries, inbox), name="scheduler deliveries"),
                tasks.create_task(_collect(watch.run(), inbox), name="scheduler gateways"),
                tasks.create_task(self._tick(inbox, mirror, stop), name="scheduler ticks"),
            ]
            log.info("scheduler %s listens", self.scheduler_id)
            ready.set()
            await _work(desk, mirror, inbox, stop)
            for task in beside:
                task.cancel()

    async def _show(self, tally: Tally, mirror: Mirror) -> None:
        """Show in the store what was counted, while the broker serves us; for ever.

        So this scheduler learns as well that another one has taken over: sooner than it could take
        its not hearing of workers for their silence.
        """
        while True:
            if mirror.has_taken_over:
                mirror.show(tally.record(self.scheduler_id, self._predictor))
            await asyncio.sleep(RENEW_S)

    async def _tick(self, inbox: _Inbox, mirror: Mirror, stop: asyncio.Event) -> None:
        """Tell the desk of time, for as long as it can hear of anything else as well.

        A tick also ends a wait for the inbox when it is time to stop, or to stand by.
        """
        while True:
            await pause(stop, _TICK_S)
            if self._resources.bus.is_connected or stop.is_set() or mirror.is_deposed:
                await inbox.put(Tick())
            if stop.is_set():
                return


async def _collect(source: AsyncIterator[Delivery | GatewayGone], inbox: _Inbox) -> None:
    async for item in source:
        await inbox.put(item)


async def _work(desk: Desk, mirror: Mirror, inbox: _Inbox, stop: asyncio.Event) -> None:
    """One after the other, until stop, or until another scheduler is found to have taken over."""
    is_active = False
    try:
        while not stop.is_set():
            item = await inbox.get()
            if mirror.is_deposed:
                log.warning("another scheduler has taken over; standing by")
                return
            if isinstance(item, Tick | GatewayGone):
                await desk.notice(item)
                continue
            if not is_active:
                is_active = True
                await desk.recall(await mirror.take_over())
            await desk.receive(item)
    except BusUnavailable as fault:
        log.warning("stopped with the broker away; it will deliver again: %s", fault)
