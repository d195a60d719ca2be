"""Which gateways are taken for gone."""

from contextlib import AsyncExitStack

from anole_scheduler.custody import Custody
from anole_scheduler.gateway_watch import GatewayWatch
from anole_shared.bus_memory import MemoryBus
from anole_shared.ids import GatewayId, RequestId
from anole_shared.topology import Queue, gateway_queue
from tests.unit.scheduler.letters import Letter, make_custody, submitted


class AwayBus(MemoryBus):
    """Without a broker while is_away."""

    is_away = False

    async def exists(self, queue: Queue) -> bool:
        if self.is_away:
            await self.close()
        return await super().exists(queue)


async def hold(custody: Custody, *names: str) -> None:
    for name in names:
        letter = Letter(submitted(name))
        await custody.hold(letter, letter.message, 0)


async def test_a_gateway_that_is_missing_twice_is_gone() -> None:
    bus, custody = MemoryBus(), make_custody()
    watch = GatewayWatch(bus, custody)
    await hold(custody, "r1", "r2")
    async with AsyncExitStack() as there:
        await there.enter_async_context(bus.consume(gateway_queue(GatewayId("g1")), prefetch=9))
        assert [await watch.look() for _ in range(3)] == [[], [], []]
    assert [await watch.look() for _ in range(2)] == [[], ["g1"]]


async def test_one_that_comes_back_in_between_is_not() -> None:
    bus, custody = MemoryBus(), make_custody()
    watch = GatewayWatch(bus, custody)
    await hold(custody, "r1")
    for _ in range(3):
        assert await watch.look() == []
        async with bus.consume(gateway_queue(GatewayId("g1")), prefetch=9):
            assert await watch.look() == []


async def test_one_for_which_nothing_is_held_is_not_looked_for() -> None:
    bus, custody = MemoryBus(), make_custody()
    watch = GatewayWatch(bus, custody)
    await hold(custody, "r1", "r2")
    await custody.done(RequestId("r1"), 0)
    assert custody.gateways == ["g1"]
    await custody.done(RequestId("r2"), 0)
    assert custody.gateways == []
    assert [await watch.look() for _ in range(2)] == [[], []]


async def test_while_the_broker_is_away_nobody_is_taken_for_gone() -> None:
    bus, custody = AwayBus(), make_custody()
    watch = GatewayWatch(bus, custody)
    await hold(custody, "r1")
    assert await watch.look() == []
    bus.is_away = True
    assert [await watch.look() for _ in range(2)] == [[], []]
