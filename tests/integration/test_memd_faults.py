"""What happens to leases when processes are killed, leak, race, or are slow: on the real memd."""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from anole_memd.client import MemdClient
from anole_memd.errors import MemdRefused, MemdUnavailable
from anole_shared.units import HUGE_PAGE_BYTES
from tests.memds import memd_at

BUDGET_BYTES = 16 * HUGE_PAGE_BYTES

HOLDER = """
import mmap, os, sys
from pathlib import Path
from anole_memd.client import MemdClient

memd = MemdClient(Path(sys.argv[1]))
kept = []
for _ in range(int(sys.argv[2])):
    lease, descriptor = memd.lease(2**21, label="holder", purpose="test")
    mapping = mmap.mmap(descriptor, lease.num_bytes)
    mapping[:5] = b"anole"
    os.close(descriptor)
    kept.append(mapping)
if sys.argv[3:] == ["leak"]:
    child = os.fork()
    if child == 0:
        sys.stdin.read()
        os._exit(0)
    print(child, flush=True)
else:
    print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        try:
            yield child
        finally:
            child.kill()


def small_memd(path: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    return memd_at(path, ANOLE_MEMD_BUDGET_BYTES=str(BUDGET_BYTES))


@contextmanager
def holder(path: Path, num_leases: int, *more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with started(sys.executable, "-c", HOLDER, str(path), str(num_leases), *more) as child:
        assert child.stdout is not None
        yield child, child.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memd.sock"


def killed(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait()


def until_leases(memd: MemdClient, num_leases: int) -> None:
    for status in memd.watch():
        if status.num_leases == num_leases:
            return


def sizes(memd: MemdClient) -> tuple[int, int, int]:
    status = memd.status()
    return status.leased_bytes, status.num_leases, status.num_stuck


def test_a_killed_memd_finds_living_and_dead_holders_again(path: Path) -> None:
    with small_memd(path) as first, holder(path, 3) as (alive, _), holder(path, 2) as (doomed, _):
        with MemdClient(path) as memd:
            before = {r.lease_id: r.pid for r in memd.regions()}
        assert sorted(filter(None, before.values())) == sorted([alive.pid] * 3 + [doomed.pid] * 2)
        killed(first)
        killed(doomed)
        with small_memd(path), MemdClient(path) as memd:
            assert sizes(memd) == (3 * HUGE_PAGE_BYTES, 3, 0)
            found = {r.lease_id: r.pid for r in memd.regions()}
            assert found == {i: pid for i, pid in before.items() if pid == alive.pid}
            assert {r.lease_state for r in memd.regions()} == {"detached"}
            killed(alive)
            with MemdClient(path) as watcher:
                until_leases(watcher, 0)
            assert sizes(memd) == (0, 0, 0)
            assert memd.status().plugged_bytes == 0


def test_killed_in_the_middle_of_many_leases_all_that_was_granted_is_known(path: Path) -> None:
    """SIGKILL at an arbitrary moment."""
    held: dict[str, int] = {}

    def lease_until_memd_is_gone() -> None:
        with MemdClient(path) as memd, suppress(MemdUnavailable):
            while True:
                lease, descriptor = memd.lease(4096, label="t", purpose="t")
                assert descriptor is not None
                held[lease.lease_id] = descriptor

    with small_memd(path) as first:
        thread = threading.Thread(target=lease_until_memd_is_gone)
        thread.start()
        while len(held) < 40:
            assert thread.is_alive()
        killed(first)
        thread.join()
    with small_memd(path), MemdClient(path) as memd:
        known = {region.lease_id for region in memd.regions()}
    for descriptor in held.values():
        os.close(descriptor)
    assert held.keys() <= known
    assert len(known) <= len(held) + 1


def test_a_mapping_that_a_child_keeps_is_named_and_given_back_when_it_ends(path: Path) -> None:
    with small_memd(path), holder(path, 1, "leak") as (parent, child_pid):
        killed(parent)
        with MemdClient(path) as memd:
            with MemdClient(path) as watcher:
                until_leases(watcher, 0)
            (region,) = memd.regions()
            assert (region.state, region.lease_id) == ("stuck", None)
            assert region.detail.startswith("busy: ")
            assert child_pid in region.detail
            assert memd.status().plugged_bytes == HUGE_PAGE_BYTES
            with pytest.raises(MemdRefused, match="still mapped"):
                memd.unplug(region.region_id)
            os.kill(int(child_pid), signal.SIGKILL)
            for status in memd.watch():
                if status.plugged_bytes == 0:
                    break
            assert sizes(memd)[2] == 0


def test_a_leaked_region_can_be_taken_by_force(path: Path) -> None:
    with small_memd(path), holder(path, 1, "leak") as (parent, child_pid):
        killed(parent)
        with MemdClient(path) as memd:
            with MemdClient(path) as watcher:
                until_leases(watcher, 0)
            (region,) = memd.regions()
            assert region.resident_bytes > 0
            assert memd.unplug(region.region_id, force=True) == HUGE_PAGE_BYTES
            assert list(memd.regions()) == []
        os.kill(int(child_pid), signal.SIGKILL)


def test_two_holders_that_race_never_have_more_than_the_budget(path: Path) -> None:
    refused: list[str] = []
    granted: list[int] = []

    def race() -> None:
        with MemdClient(path) as memd:
            for _ in range(16):
                try:
                    _, descriptor = memd.lease(HUGE_PAGE_BYTES, label="racer", purpose="race")
                    assert descriptor is not None
                    granted.append(descriptor)
                except MemdRefused as refusal:
                    refused.append(str(refusal))

    with small_memd(path):
        racers = [threading.Thread(target=race) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        with MemdClient(path) as memd:
            assert sizes(memd) == (BUDGET_BYTES, 16, 0)
    assert (len(granted), len(refused)) == (16, 16)
    assert all("no room" in one for one in refused)
    for descriptor in granted:
        os.close(descriptor)


def test_who_waits_for_room_is_served_in_order_or_refused_in_time(path: Path) -> None:
    order: list[int] = []

    def wait(number: int) -> None:
        with MemdClient(path) as memd:
            lease, descriptor = memd.lease(BUDGET_BYTES, label="w", purpose="w", wait_s=30)
            order.append(number)
            assert descriptor is not None
            os.close(descriptor)
            memd.release(lease.lease_id)

    with small_memd(path), MemdClient(path) as memd:
        lease, descriptor = memd.lease(BUDGET_BYTES, label="first", purpose="w")
        with pytest.raises(MemdRefused, match=r"waited 0\.2 s"):
            memd.lease(1, label="w", purpose="w", wait_s=0.2)
        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=wait, args=(number,)))
            threads[-1].start()
            while waiting(path) <= number:
                pass
        assert descriptor is not None
        os.close(descriptor)
        memd.release(lease.lease_id)
        for thread in threads:
            thread.join()
    assert order == [0, 1, 2, 3]


def waiting(path: Path) -> int:
    """Connections that have sent and not been answered: all of this process but our own."""
    with MemdClient(path) as memd:
        memd.status()
    inode_lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(str(path)) for line in inode_lines) - 3


def test_the_command_line_reports_and_mends(path: Path) -> None:
    def anole(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "anole_cli", "memd", *arguments, "--memd-socket", str(path)],
            check=False,
            capture_output=True,
            text=True,
        )

    with small_memd(path), holder(path, 1) as (child, _):
        listed = anole("list")
        assert f"leased {HUGE_PAGE_BYTES} bytes; 1 leases" in listed.stdout
        row = listed.stdout.splitlines()[1]
        region, lease = row.split()[0], next(w for w in row.split() if w.startswith("lease-"))
        assert f"held by {child.pid}" in row
        refused = anole("unplug", region)
        assert refused.returncode == 1
        assert f"is leased as {lease}" in refused.stderr
        assert anole("renew", lease, "--ttl", "100").returncode == 0
        assert anole("release", lease).returncode == 0
        assert "stuck" in anole("list").stdout
        forced = anole("unplug", region, "--force")
        assert forced.stdout == f"{region}: {HUGE_PAGE_BYTES} bytes back\n"
        assert anole("lease", "12 parsecs").returncode == 2
        assert "made when they are leased" in anole("plug", "4MiB").stderr
    assert anole("list").returncode == 1


def test_a_leased_command_finds_its_region_and_holds_the_lease(path: Path) -> None:
    script = (
        "import json, os, sys; d = int(os.environ['ANOLE_REGION_FD']);"
        "print(json.dumps([os.fstat(d).st_size, os.getpid()]), flush=True); sys.stdin.read()"
    )
    command = ["-m", "anole_cli", "memd", "lease", "--memd-socket", str(path), "4MiB"]
    with small_memd(path), MemdClient(path) as memd:
        with started(sys.executable, *command, "--", sys.executable, "-c", script) as child:
            assert child.stdout is not None
            size, pid = json.loads(child.stdout.readline())
            assert (size, pid) == (2 * HUGE_PAGE_BYTES, child.pid)
            (region,) = memd.regions()
            assert (region.pid, region.num_bytes) == (pid, size)
            child.communicate("")
        with MemdClient(path) as watcher:
            until_leases(watcher, 0)


def test_a_mapping_survives_memd_and_is_released_by_name_on_the_next(path: Path) -> None:
    with small_memd(path) as first:
        with MemdClient(path) as memd:
            lease, descriptor = memd.lease(HUGE_PAGE_BYTES, label="w", purpose="w")
        assert descriptor is not None
        mapping = mmap.mmap(descriptor, HUGE_PAGE_BYTES)
        os.close(descriptor)
        mapping[:5] = b"anole"
        killed(first)
        with small_memd(path), MemdClient(path) as memd:
            assert sizes(memd) == (HUGE_PAGE_BYTES, 1, 0)
            assert mapping[:5] == b"anole"
            mapping.close()
            memd.release(lease.lease_id)
            assert sizes(memd) == (0, 0, 0)


STRANGER = """
import os, socket, sys
os.setresuid(65534, 65534, 65534)
memd = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
memd.connect(sys.argv[1])
print(memd.recv(9999).decode())
"""


def test_another_user_is_refused_by_uid_even_if_the_socket_lets_it_in() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        path = Path(folder) / "memd.sock"
        with small_memd(path):
            path.chmod(0o666)
            command = [sys.executable, "-c", STRANGER, str(path)]
            said = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "user 65534" in said.stdout, said.stderr
