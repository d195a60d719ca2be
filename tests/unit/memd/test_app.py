import asyncio
from pathlib import Path

import pytest

from anole_memd.app import MemdService
from anole_memd.settings import MemdSettings
from anole_memd.status import memory_status
from anole_shared.errors import ConfigurationError
from anole_shared.lifecycle import Service
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.units import MiB


def service_at(path: Path) -> Service:
    return MemdService(
        CommonSettings(memd_socket=path), MemdSettings(budget_bytes=8 * MiB), Telemetry("memd")
    )


async def test_it_answers_once_ready_and_is_gone_once_stopped(tmp_path: Path) -> None:
    path = tmp_path / "memd.sock"
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(service_at(path).run(ready=ready, stop=stop), name="memd")
        await ready.wait()
        report = await asyncio.to_thread(memory_status, path, 5)
        assert (report.total_bytes, report.leased_bytes, report.num_leases) == (8 * MiB, 0, 0)
        stop.set()
        await running
    assert not path.exists()


async def test_a_second_memd_does_not_start_and_the_first_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "memd.sock"
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service_at(path).run(ready=ready, stop=stop), name="memd")
        await ready.wait()
        with pytest.raises(ConfigurationError, match="another memd serves"):
            await service_at(path).run(ready=asyncio.Event(), stop=asyncio.Event())
        assert (await asyncio.to_thread(memory_status, path, 5)).num_leases == 0
        stop.set()


def test_it_is_called_memd(tmp_path: Path) -> None:
    assert service_at(tmp_path / "memd.sock").name == "memd"
