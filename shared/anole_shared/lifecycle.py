"""What a service is to whoever runs it: resources in, readiness out, stop when told."""

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from anole_shared.bus import Bus
from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import Clock, SystemClock
from anole_shared.codec import encode
from anole_shared.errors import StoreUnavailable
from anole_shared.keys import LEASE_S, RENEW_S, Collection
from anole_shared.messages import ServiceRecord
from anole_shared.settings import CommonSettings
from anole_shared.store import Store
from anole_shared.store_memory import MemoryStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What every service is given from outside."""

    bus: Bus
    store: Store
    clock: Clock


class Service(Protocol):
    """One of the four services."""

    @property
    def name(self) -> str:
        """For logs and task names."""
        ...

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Serve until stop is set; set ready as soon as work can be taken. Returns when drained."""
        ...


@asynccontextmanager
async def resources(settings: CommonSettings) -> AsyncIterator[Resources]:
    """The bus and store that the settings name: RabbitMQ and Redis, or in-process ones."""
    clock = SystemClock()
    store = _store(settings, clock)
    try:
        bus = await _bus(settings)
        try:
            yield Resources(bus=bus, store=store, clock=clock)
        finally:
            await bus.close()
    finally:
        await store.close()


def _store(settings: CommonSettings, clock: Clock) -> Store:
    if settings.redis_url is None:
        return MemoryStore(clock)
    # Late, as below: these two libraries are half of what a command of `anole` would load.
    from anole_shared.store_redis import RedisStore

    return RedisStore(settings.redis_url.get_secret_value())


async def _bus(settings: CommonSettings) -> Bus:
    if settings.amqp_url is None:
        return MemoryBus()
    from anole_shared.bus_amqp import AmqpBus

    return await AmqpBus.connect(settings.amqp_url.get_secret_value())


async def run_services(
    services: Sequence[Service], *, ready: asyncio.Event, stop: asyncio.Event
) -> None:
    """Run services side by side; ready when all of them are.

    Each starts when the one before it is ready, so that no two of them import and load at the same
    time (transformers' lazy imports fail at random when two threads race through them). At stop
    they end one after the other, the last listed first: so list a service after those it leans on.
    Where one ends by itself (a worker that was drained) that is a stop as well.
    Where one fails, the rest are cancelled and the error is raised: a half-dead process
    is worse than one that is restarted.
    """
    async with asyncio.TaskGroup() as tasks:
        running = []
        for service in services:
            service_ready, service_stop = asyncio.Event(), asyncio.Event()
            run = service.run(ready=service_ready, stop=service_stop)
            running.append((tasks.create_task(run, name=service.name), service_stop))
            running[-1][0].add_done_callback(lambda _: stop.set())
            await either(service_ready, stop)
            if stop.is_set():
                break
        if not stop.is_set():
            ready.set()
        await stop.wait()
        for task, service_stop in reversed(running):
            service_stop.set()
            await asyncio.wait([task])


async def either(first: asyncio.Event, second: asyncio.Event) -> None:
    """Return when one of them is set."""
    async with asyncio.TaskGroup() as tasks:
        waits = [tasks.create_task(event.wait()) for event in (first, second)]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGINT, SIGTERM and SIGHUP (a closed terminal) set stop; a second one acts as usual."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        log.info("%s: stopping", number.name)
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)


async def keep_alive(given: Resources, kind: str, service_id: str, stop: asyncio.Event) -> None:
    """Renew this service's record in the store until stop, then remove it."""
    record_id = f"{kind}:{service_id}"
    record = encode(
        ServiceRecord(
            kind=kind,
            service_id=service_id,
            host=socket.gethostname(),
            started_s=given.clock.wall(),
        )
    )
    while not stop.is_set():
        try:
            await given.store.put(Collection.SERVICES, record_id, record, ttl_s=LEASE_S)
        except StoreUnavailable as fault:
            log.warning("liveness not renewed: %s", fault)
        await pause(stop, RENEW_S)
    try:
        await given.store.delete(Collection.SERVICES, record_id)
    except StoreUnavailable:
        log.warning("store gone at stop; the record of %s lapses in %.0f s", record_id, LEASE_S)


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but wake at once when stop is set."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
