"""How services are given what they need, run side by side and stopped."""

import asyncio
import logging
import os
import signal
import socket
from dataclasses import dataclass, field

import pytest

from anole_shared import lifecycle
from anole_shared.bus_amqp import AmqpBus
from anole_shared.bus_memory import MemoryBus
from anole_shared.codec import decode_record
from anole_shared.errors import ConfigurationError, StoreUnavailable
from anole_shared.keys import LEASE_S, Collection
from anole_shared.lifecycle import (
    Resources,
    keep_alive,
    pause,
    resources,
    run_services,
    stop_on_signals,
)
from anole_shared.messages import ServiceRecord
from anole_shared.settings import CommonSettings
from anole_shared.store_memory import MemoryStore
from anole_shared.store_redis import RedisStore
from tests.clocks import HandClock
from tests.servers import free_port
from tests.traffic import until


@dataclass
class Stage:
    """What several services did, in order."""

    events: list[str] = field(default_factory=list)


class Actor:
    """A service that is ready when told, and ends when told."""

    def __init__(self, name: str, stage: Stage) -> None:
        self.name = name
        self.may_be_ready = asyncio.Event()
        self.failure: Exception | None = None
        self._stage = stage

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        try:
            await self.may_be_ready.wait()
            if self.failure is not None:
                raise self.failure
            ready.set()
            await stop.wait()
            self._stage.events.append(f"{self.name} stops")
            await asyncio.sleep(0)
            self._stage.events.append(f"{self.name} stopped")
        except asyncio.CancelledError:
            self._stage.events.append(f"{self.name} cancelled")
            raise


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def actors(stage: Stage) -> list[Actor]:
    return [Actor("first", stage), Actor("second", stage)]


async def test_a_service_that_ends_by_itself_stops_the_others(stage: Stage) -> None:
    class Drained(Actor):
        async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
            ready.set()

    first = Actor("first", stage)
    first.may_be_ready.set()
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(10):
        await run_services([first, Drained("second", stage)], ready=ready, stop=stop)
    assert stage.events == ["first stops", "first stopped"]


async def test_ready_is_when_every_service_is(actors: list[Actor]) -> None:
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_services(actors, ready=ready, stop=stop))
        actors[1].may_be_ready.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not ready.is_set()
        actors[0].may_be_ready.set()
        await ready.wait()
        stop.set()


async def test_services_end_one_after_the_other_the_last_listed_first(
    actors: list[Actor], stage: Stage
) -> None:
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_services(actors, ready=ready, stop=stop))
        for actor in actors:
            actor.may_be_ready.set()
        await ready.wait()
        stop.set()
    assert stage.events == ["second stops", "second stopped", "first stops", "first stopped"]


async def test_a_stop_before_anything_is_ready_ends_without_ever_being_ready(
    actors: list[Actor],
) -> None:
    ready, stop = asyncio.Event(), asyncio.Event()
    stop.set()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_services(actors, ready=ready, stop=stop))
        for actor in actors:
            actor.may_be_ready.set()
    assert not ready.is_set()


async def test_a_service_that_fails_takes_the_others_with_it(
    actors: list[Actor], stage: Stage
) -> None:
    actors[0].may_be_ready.set()
    actors[1].failure = ConfigurationError("no such model")
    actors[1].may_be_ready.set()
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigurationError, match="no such model")):
        await run_services(actors, ready=asyncio.Event(), stop=asyncio.Event())
    assert stage.events == ["first cancelled"]


async def test_without_addresses_everything_stays_in_the_process() -> None:
    async with resources(CommonSettings(amqp_url=None, redis_url=None)) as given:
        assert isinstance(given.bus, MemoryBus)
        assert isinstance(given.store, MemoryStore)
        await given.store.ping()
    assert not given.bus.is_connected
    with pytest.raises(StoreUnavailable):
        await given.store.ping()


@pytest.mark.integration
async def test_with_addresses_the_servers_are_used(rabbitmq_url: str, redis_url: str) -> None:
    settings = CommonSettings.model_validate({"amqp_url": rabbitmq_url, "redis_url": redis_url})
    async with resources(settings) as given:
        assert isinstance(given.bus, AmqpBus)
        assert isinstance(given.store, RedisStore)
        assert given.bus.is_connected
        await given.store.ping()
    assert not given.bus.is_connected


async def test_a_broker_that_is_not_there_stops_the_start() -> None:
    url = f"amqp://127.0.0.1:{free_port()}/"
    with pytest.raises(ConfigurationError, match="ANOLE_AMQP_URL"):
        async with resources(CommonSettings.model_validate({"amqp_url": url})):
            pytest.fail("started without a broker")


async def test_a_signal_sets_stop_and_the_next_one_acts_as_usual() -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(10):
        await stop.wait()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


async def test_a_live_service_has_a_record_until_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "RENEW_S", 0.01)
    clock, stop = HandClock(), asyncio.Event()
    store = MemoryStore(clock)
    given = Resources(bus=MemoryBus(), store=store, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_alive(given, "gateway", "g1", stop))
        await until_alive(store)
        clock.time_s += LEASE_S  # lapsed, unless it is renewed
        body = await until_alive(store)
        assert decode_record(ServiceRecord, body) == ServiceRecord(
            kind="gateway", service_id="g1", host=socket.gethostname(), started_s=1000.0
        )
        stop.set()
    assert await store.all(Collection.SERVICES) == {}


async def until_alive(store: MemoryStore) -> bytes:
    async with asyncio.timeout(10):
        while (body := await store.get(Collection.SERVICES, "gateway:g1")) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return body


async def test_a_store_that_is_gone_does_not_end_the_service(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "RENEW_S", 0.01)
    clock, stop = HandClock(), asyncio.Event()
    store = MemoryStore(clock)
    await store.close()
    given = Resources(bus=MemoryBus(), store=store, clock=clock)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_alive(given, "gateway", "g1", stop))
        await until(lambda: caplog.text.count("not renewed") >= 2)
        stop.set()
    assert caplog.records[-1].levelno == logging.WARNING
    assert "gateway:g1" in caplog.records[-1].message


async def test_a_pause_ends_at_once_when_stop_is_set() -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        tasks.create_task(pause(stop, 3600))
        await asyncio.sleep(0)
        stop.set()


async def test_a_pause_without_a_stop_ends_by_itself() -> None:
    async with asyncio.timeout(10):
        await pause(asyncio.Event(), 0.01)


async def test_a_service_starts_when_the_one_before_it_is_ready() -> None:
    order: list[str] = []

    class Slow:
        def __init__(self, name: str) -> None:
            self.name = name

        async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
            order.append(f"{self.name} starts")
            await asyncio.sleep(0)
            order.append(f"{self.name} is ready")
            ready.set()
            await stop.wait()
            order.append(f"{self.name} ends")

    all_ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run_services([Slow("a"), Slow("b")], ready=all_ready, stop=stop))
        await all_ready.wait()
        stop.set()
    assert order == ["a starts", "a is ready", "b starts", "b is ready", "b ends", "a ends"]
