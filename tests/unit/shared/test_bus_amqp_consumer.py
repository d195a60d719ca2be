"""What the receiving half of the bus over RabbitMQ decides without a broker."""

import asyncio

from anole_shared.bus_amqp_consumer import Incoming
from tests.traffic import PATIENCE_S, fleeting


async def test_a_gap_waits_until_the_whole_bus_is_connected() -> None:
    is_connected, told = False, asyncio.Event()
    incoming = Incoming(
        fleeting(), 10, "nowhere", on_gap=told.set, is_connected=lambda: is_connected
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(take_all(incoming))
        for channel in ("the first", "the second"):
            incoming.follow(channel)
        await asyncio.sleep(0.01)
        incoming.wake()
        await asyncio.sleep(0.01)
        assert not told.is_set()
        is_connected = True
        incoming.wake()
        async with asyncio.timeout(PATIENCE_S):
            await told.wait()
        incoming.stop()


async def take_all(incoming: Incoming) -> None:
    async for _ in incoming:
        pass
