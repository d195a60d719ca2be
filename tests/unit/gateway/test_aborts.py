"""Aborts reach the scheduler, even if the bus is away for a while."""

import asyncio

import pytest

from anole_gateway import aborts as module
from anole_gateway.aborts import Aborts
from anole_shared.bus import Headers
from anole_shared.bus_memory import MemoryBus
from anole_shared.errors import BusUnavailable
from anole_shared.ids import RequestId
from anole_shared.messages import Message, RequestAborted
from anole_shared.topology import Queue


class FlakyBus(MemoryBus):
    """Fails some times before it works."""

    def __init__(self, num_failures: int) -> None:
        super().__init__()
        self.num_failures = num_failures
        self.published: list[Message] = []

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        if self.num_failures > 0:
            self.num_failures -= 1
            raise BusUnavailable("away")
        self.published.append(message)


def abort(name: str) -> RequestAborted:
    return RequestAborted(request_id=RequestId(name), reason="client went away")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.0)


async def publish_all(bus: FlakyBus, *messages: RequestAborted) -> None:
    aborts = Aborts(bus)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(aborts.run())
        for message in messages:
            aborts.put(message, {})
        await aborts.flush(10)
        running.cancel()


async def test_aborts_are_published_once_and_in_order() -> None:
    bus = FlakyBus(0)
    await publish_all(bus, abort("a"), abort("b"))
    assert bus.published == [abort("a"), abort("b")]


async def test_a_bus_that_comes_back_gets_them_still() -> None:
    bus = FlakyBus(3)
    await publish_all(bus, abort("a"), abort("b"))
    assert bus.published == [abort("a"), abort("b")]


async def test_a_bus_that_stays_away_does_not_hold_the_rest_for_ever() -> None:
    bus = FlakyBus(module._MAX_TRIES)
    await publish_all(bus, abort("a"), abort("b"))
    assert bus.published == [abort("b")]


async def test_more_than_fit_are_lost_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 1)
    bus = FlakyBus(0)
    await publish_all(bus, abort("a"), abort("b"))
    assert bus.published == [abort("a")]
    assert "b is lost" in caplog.text


async def test_flushing_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    aborts = Aborts(FlakyBus(0))
    aborts.put(abort("a"), {})
    await aborts.flush(0)
    assert "1 aborts not published" in caplog.text
