"""memd asks a worker's connection for idle memory, and the worker's regions go back for real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from anole_memd.app import MemdService
from anole_memd.settings import MemdSettings
from anole_memd.status import memory_status
from anole_shared.messages import MemoryStatusReported
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.units import HUGE_PAGE_BYTES
from anole_worker.leases import Region, RegionClient
from anole_worker.revocations import Revocations

BUDGET_BYTES = 16 * HUGE_PAGE_BYTES


@asynccontextmanager
async def memd_at(path: Path) -> AsyncIterator[None]:
    """A memd that keeps nothing idle for longer than a moment."""
    settings = MemdSettings(
        budget_bytes=BUDGET_BYTES, floor_bytes=0, hold_s=0.5, headroom=0, revoke_s=2
    )
    service = MemdService(CommonSettings(memd_socket=path), settings, Telemetry("memd"))
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(ready=ready, stop=stop))
        await ready.wait()
        yield
        stop.set()


async def until(path: Path, leased_bytes: int) -> MemoryStatusReported:
    while True:
        status = await asyncio.to_thread(memory_status, path, 5)
        if status.leased_bytes == leased_bytes and status.last_revocation:
            return status
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(("num_kept", "state"), [(2, "met"), (8, "refused"), (6, "short")])
async def test_idle_memory_comes_back_and_what_does_not_is_told(
    tmp_path: Path, num_kept: int, state: str
) -> None:
    """The worker says that it uses two of its eight regions, but will not part with num_kept."""
    path = tmp_path / "memd.sock"
    async with memd_at(path):
        client = RegionClient(path, "worker")

        def lease() -> Region:
            return client.lease(HUGE_PAGE_BYTES, purpose="test", headers={})

        regions = [await asyncio.to_thread(lease) for _ in range(8)]
        for region in regions:
            region.buffer[:5] = b"anole"

        async def give_up(num_bytes: int) -> int:
            given = 0
            while len(regions) > num_kept and given < num_bytes:
                await asyncio.to_thread(regions[-1].release)
                given += regions.pop().num_bytes
            return given

        revocations = Revocations(path, lambda: 2 * HUGE_PAGE_BYTES, give_up)
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(revocations.run())
            status = await until(path, num_kept * HUGE_PAGE_BYTES)
            listening.cancel()
        assert f": {state}" in status.last_revocation
        assert status.requested_bytes == 2 * HUGE_PAGE_BYTES
        assert status.plugged_bytes == status.leased_bytes
        for region in regions:
            assert bytes(region.buffer[:5]) == b"anole"
            await asyncio.to_thread(region.release)
        client.close()
