"""Programs in regions of a real memd, confined by real control groups.

Where this host has none, tests/e2e/test_guest_sandboxes.py runs this in a guest.
"""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anole_memd.backends import cgroup
from anole_memd.client import MemdClient
from anole_memd.errors import MemdRefused, SandboxUnavailable
from anole_memd.sandbox import Supervisor
from anole_shared.units import MiB
from tests.memds import memd_at

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(180)]

REGION_BYTES = 64 * MiB

TAKE = "import sys; kept = bytearray(int(sys.argv[1]) * 2**20); print(len(kept), flush=True)"
WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module", autouse=True)
def within() -> Path:
    try:
        return cgroup.parent()
    except SandboxUnavailable as reason:
        pytest.skip(f"needs a writable cgroup v2 with the memory controller: {reason}")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A memd with room for two regions, for all tests: each leaves it as it was."""
    socket = tmp_path_factory.mktemp("memd") / "memd.sock"
    with memd_at(socket, ANOLE_MEMD_BUDGET_BYTES=str(2 * REGION_BYTES)):
        yield socket


def run_anole(path: Path, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "anole_cli", "memd", "run", "--memd-socket", str(path)),
        *("--memory", "64MiB", *arguments),
    ]


def num_leases(path: Path) -> int:
    with MemdClient(path) as memd:
        status = memd.status()
    assert status.num_stuck == 0
    return status.num_leases


def groups(within: Path) -> list[str]:
    return [entry.name for entry in within.iterdir() if entry.is_dir()]


@contextmanager
def sandboxed(path: Path, *program: str) -> Iterator[subprocess.Popen[str]]:
    command = run_anole(path, "--", sys.executable, "-c", *program)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        yield child
        child.kill()


@pytest.mark.parametrize("status", [0, 3])
def test_a_program_that_fits_runs_and_its_status_passes_through(
    path: Path, within: Path, status: int
) -> None:
    program = f"{TAKE}; sys.exit({status})"
    done = subprocess.run(
        run_anole(path, "--", sys.executable, "-c", program, "20"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (status, f"{20 * MiB}\n")
    assert num_leases(path) == 0
    assert groups(within) == []


def test_a_program_that_needs_more_is_killed_with_its_children_and_says_so(
    path: Path, within: Path
) -> None:
    program = f"import os; child = os.fork() or os.setsid()\n{TAKE}"
    done = subprocess.run(
        run_anole(path, "--", sys.executable, "-c", program, "100"),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 128 + signal.SIGKILL
    assert "needs more than the 67108864 bytes of its region" in done.stderr
    assert num_leases(path) == 0
    assert groups(within) == []


def test_signals_are_passed_on(path: Path) -> None:
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7));"
        "print('ready', flush=True); signal.pause()"
    )
    with sandboxed(path, program) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 7


def test_a_killed_supervisor_leaves_no_program_and_no_lease(path: Path, within: Path) -> None:
    with sandboxed(path, WAIT) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        (name,) = groups(within)
        (pid,) = (within / name / "cgroup.procs").read_text().split()
        child.kill()
        child.wait()
        with MemdClient(path) as memd:
            for status in memd.watch():
                if (status.num_leases, status.plugged_bytes) == (0, 0):
                    break
        # It can be a zombie yet, where nobody waits for orphans: those are not listed.
        assert pid not in (within / name / "cgroup.procs").read_text().split()
    cgroup.sweep(within)
    assert groups(within) == []


async def test_instances_wait_in_order_for_a_region(path: Path) -> None:
    supervisor = Supervisor(path, memory_bytes=REGION_BYTES, wait_s=60)
    started: list[int] = []
    running = 0
    most = 0

    async def instance(number: int) -> None:
        nonlocal running, most
        async with supervisor.running([sys.executable, "-c", TAKE, "10"]) as one:
            started.append(number)
            running += 1
            most = max(most, running)
            ended = await one.wait()
            running -= 1
        assert (ended.status, ended.is_out_of_memory) == (0, False)

    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(instance(number))
            await asyncio.sleep(0.3)
    assert started == list(range(6))
    assert most <= 2
    assert num_leases(path) == 0


async def test_without_a_region_in_time_the_start_fails(path: Path) -> None:
    holder = Supervisor(path, memory_bytes=2 * REGION_BYTES)
    late = Supervisor(path, memory_bytes=REGION_BYTES, wait_s=0.3)
    async with holder.running(["sleep", "100"]) as one:
        with pytest.raises(MemdRefused, match=r"waited 0\.3 s"):
            async with late.running(["true"]):
                pass
        one.send_signal(signal.SIGTERM)
        assert (await one.wait()).status == 128 + signal.SIGTERM
    async with late.running(["true"]) as another:
        assert (await another.wait()).status == 0


async def test_a_program_that_is_not_there_leaves_nothing(path: Path, within: Path) -> None:
    supervisor = Supervisor(path, memory_bytes=REGION_BYTES)
    with pytest.raises(SandboxUnavailable, match="cannot be started"):
        async with supervisor.running(["/no/such/program"]):
            pass
    assert num_leases(path) == 0
    assert groups(within) == []
