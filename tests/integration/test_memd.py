"""memd and the worker's client of it, over a real socket, with real memory."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anole_memd.app import MemdService
from anole_memd.settings import MemdSettings
from anole_memd.status import memory_status
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry, headers_of
from anole_shared.units import HUGE_PAGE_BYTES
from anole_worker.leases import LeaseRefused, MemdUnavailable, Region, RegionClient, RegionInUse

BUDGET_BYTES = 16 * HUGE_PAGE_BYTES

MEMD = """
import asyncio, sys
from pathlib import Path
from anole_memd.app import MemdService
from anole_memd.settings import MemdSettings
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry

async def main():
    service = MemdService(
        CommonSettings(memd_socket=Path(sys.argv[1])),
        MemdSettings(budget_bytes=2**25),
        Telemetry("memd"),
    )
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(ready=ready, stop=asyncio.Event()))
        await ready.wait()
        print("ready", flush=True)

asyncio.run(main())
"""

HOLDER = """
import sys
from pathlib import Path
from anole_worker.leases import RegionClient

client = RegionClient(Path(sys.argv[1]), "worker-doomed")
regions = [client.lease(2**21, purpose="doomed", headers={}) for _ in range(3)]
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """The script in a Python of its own, once it has said that it is ready; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            yield child
        finally:
            child.kill()


@contextmanager
def memd_at(path: Path, telemetry: Telemetry | None = None) -> Iterator[None]:
    """A memd on a loop and a thread of its own."""
    service = MemdService(
        CommonSettings(memd_socket=path),
        MemdSettings(budget_bytes=BUDGET_BYTES, max_leases_per_connection=8),
        telemetry or Telemetry("memd"),
    )
    ready = threading.Event()
    stops: list[Callable[[], object]] = []

    async def main() -> None:
        loop, loop_ready, stop = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        stops.append(partial(loop.call_soon_threadsafe, stop.set))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(ready=loop_ready, stop=stop), name="memd")
            await loop_ready.wait()
            ready.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(30)
    try:
        yield
    finally:
        stops[0]()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memd.sock"


@pytest.fixture
def memd(path: Path) -> Iterator[None]:
    with memd_at(path):
        yield


@pytest.fixture
def client(path: Path) -> Iterator[RegionClient]:
    client = RegionClient(path, "worker-1")
    yield client
    client.close()


def lease(
    client: RegionClient, num_bytes: int = HUGE_PAGE_BYTES, purpose: str = "french"
) -> Region:
    return client.lease(num_bytes, purpose=purpose, headers={})


def leased(path: Path) -> tuple[int, int]:
    report = memory_status(path, 10)
    return report.leased_bytes, report.num_leases


def traces_of(purpose: str, pid: int | str = "self") -> tuple[int, int]:
    """How many descriptors and mappings of regions for `purpose` a process has."""
    folder, name = Path(f"/proc/{pid}"), f"/memfd:anole-{purpose} "
    links = []
    for entry in (folder / "fd").iterdir():
        try:
            links.append(f"{entry.readlink()} ")
        except FileNotFoundError:
            continue
    maps = (folder / "maps").read_text().splitlines()
    return sum(name in link for link in links), sum(name in line for line in maps)


@pytest.mark.usefixtures("memd")
def test_a_region_is_writable_and_starts_with_zeros(client: RegionClient) -> None:
    region = lease(client, 2 * HUGE_PAGE_BYTES - 1)
    assert region.num_bytes == len(region.buffer) == 2 * HUGE_PAGE_BYTES
    assert not any(region.buffer[-4096:])
    region.buffer[-5:] = b"anole"
    assert bytes(region.buffer[-5:]) == b"anole"
    region.release()


def test_what_the_worker_writes_is_in_the_memory_that_memd_holds(
    path: Path, client: RegionClient
) -> None:
    with process(MEMD, path) as memd:
        region = lease(client, purpose="shared")
        region.buffer[:5] = b"anole"
        client.check()  # memd has let go of what it passed on
        held = [
            entry
            for entry in Path(f"/proc/{memd.pid}/fd").iterdir()
            if str(entry.readlink()).startswith("/memfd:anole-shared ")
        ]
        assert len(held) == 1
        with held[0].open("r+b", buffering=0) as same_memory:
            assert same_memory.read(5) == b"anole"
            same_memory.write(b" memd")
        assert bytes(region.buffer[:10]) == b"anole memd"
        region.release()


def test_after_a_release_neither_process_holds_the_memory(path: Path, client: RegionClient) -> None:
    with process(MEMD, path) as memd:
        region = lease(client, 4 * HUGE_PAGE_BYTES, purpose="given-back")
        client.check()
        assert traces_of("given-back") == (1, 1)
        assert traces_of("given-back", memd.pid) == (1, 0)
        region.release()
        assert traces_of("given-back") == (0, 0)
        assert traces_of("given-back", memd.pid) == (0, 0)
        assert leased(path) == (0, 0)


@pytest.mark.usefixtures("memd")
def test_a_release_is_done_once(path: Path, client: RegionClient) -> None:
    first, second = lease(client), lease(client)
    first.release()
    first.release()
    assert leased(path) == (second.num_bytes, 1)
    second.release()
    assert leased(path) == (0, 0)


@pytest.mark.usefixtures("memd")
def test_a_region_that_tensors_view_is_not_released(path: Path, client: RegionClient) -> None:
    region = lease(client)
    weights = torch.frombuffer(region.buffer, dtype=torch.float32, count=1024, offset=4096)
    row = weights.view(32, 32)[3]
    del weights
    with pytest.raises(RegionInUse, match="still viewed"):
        region.release()
    row.fill_(1.5)
    assert row.sum().item() == 48.0
    assert leased(path) == (region.num_bytes, 1)
    del row
    region.release()
    assert leased(path) == (0, 0)


@pytest.mark.usefixtures("memd")
def test_a_tensor_keeps_its_memory_when_the_region_is_forgotten(client: RegionClient) -> None:
    weights = torch.frombuffer(lease(client).buffer, dtype=torch.float32)
    weights.fill_(2.0)
    assert weights[-1].item() == 2.0


@pytest.mark.usefixtures("memd")
def test_over_the_budget_is_refused_until_there_is_room(path: Path, client: RegionClient) -> None:
    held = lease(client, BUDGET_BYTES - HUGE_PAGE_BYTES)
    with pytest.raises(LeaseRefused, match="no room for a region"):
        lease(client, 2 * HUGE_PAGE_BYTES)
    with pytest.raises(LeaseRefused, match="whole budget"):
        lease(client, BUDGET_BYTES + 1)
    with pytest.raises(LeaseRefused, match="at least 1"):
        lease(client, 0)
    held.release()
    lease(client, BUDGET_BYTES).release()
    assert leased(path) == (0, 0)


@pytest.mark.usefixtures("memd")
def test_two_workers_share_one_budget_and_not_their_memory(
    path: Path, client: RegionClient
) -> None:
    other = RegionClient(path, "worker-2")
    mine, theirs = lease(client, BUDGET_BYTES // 2), lease(other, BUDGET_BYTES // 2)
    mine.buffer[:4] = b"mine"
    assert bytes(theirs.buffer[:4]) == bytes(4)
    with pytest.raises(LeaseRefused, match="no room"):
        lease(client)
    theirs.release()
    lease(client, BUDGET_BYTES // 2).release()
    assert bytes(mine.buffer[:4]) == b"mine"
    other.close()
    mine.release()


@pytest.mark.usefixtures("memd")
def test_a_worker_that_is_killed_gives_everything_back(path: Path) -> None:
    with process(HOLDER, path) as holder:
        assert leased(path) == (3 * HUGE_PAGE_BYTES, 3)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        while leased(path) != (0, 0):
            pass
    assert traces_of("doomed") == (0, 0)


def test_regions_outlive_memd_and_leasing_goes_on_when_it_is_back(
    path: Path, client: RegionClient
) -> None:
    with process(MEMD, path):
        old = lease(client)
        old.buffer[:3] = b"old"
    assert path.is_socket()
    with pytest.raises(MemdUnavailable, match="no memd at"):
        lease(client)
    with memd_at(path):
        assert leased(path) == (old.num_bytes, 1)
        new = lease(client)
        assert leased(path) == (old.num_bytes + new.num_bytes, 2)
        assert bytes(old.buffer[:3]) == b"old"
        assert old.lease_id != new.lease_id
        old.release()
        assert leased(path) == (new.num_bytes, 1)
        new.release()
        assert leased(path) == (0, 0)


def test_a_restart_between_two_leases_goes_unnoticed(path: Path, client: RegionClient) -> None:
    with memd_at(path):
        old = lease(client)
    with memd_at(path):
        lease(client).release()
    old.release()


def test_a_release_after_memds_end_only_unmaps(path: Path, client: RegionClient) -> None:
    with memd_at(path):
        region = lease(client, purpose="orphan")
    region.release()
    assert traces_of("orphan") == (0, 0)


@pytest.mark.usefixtures("memd")
def test_a_refused_or_released_lease_leaves_no_descriptor_behind(client: RegionClient) -> None:
    lease(client).release()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        lease(client).release()
        with pytest.raises(LeaseRefused):
            lease(client, 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.usefixtures("memd")
def test_threads_may_share_one_client(path: Path, client: RegionClient) -> None:
    failures: list[BaseException] = []

    def loader(number: int) -> None:
        try:
            for _ in range(25):
                region = lease(client, purpose=f"adapter-{number}")
                region.buffer[0] = number
                assert region.buffer[0] == number
                region.release()
        except BaseException as fault:  # noqa: BLE001
            failures.append(fault)

    threads = [threading.Thread(target=loader, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert leased(path) == (0, 0)


def test_the_lease_is_a_span_in_the_loads_trace(path: Path, client: RegionClient) -> None:
    spans = InMemorySpanExporter()
    worker, memd = Telemetry("worker", exporter=spans), Telemetry("memd", exporter=spans)
    with memd_at(path, memd), worker.tracer.start_as_current_span("adapter.load") as load:
        client.lease(1, purpose="french", headers=headers_of(load)).release()
    granted, loaded = spans.get_finished_spans()
    assert (granted.name, loaded.name) == ("lease", "adapter.load")
    assert granted.context.trace_id == loaded.context.trace_id
    assert granted.parent is not None
    assert granted.parent.span_id == loaded.context.span_id
    assert granted.resource.attributes["service.name"] == "anole-memd"
    for telemetry in (worker, memd):
        telemetry.shutdown()
