"""Programs in regions that are NUMA nodes of this kernel.

Such nodes are rare: tests/e2e/test_guest_sandboxes.py runs this in a guest that has two.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anole_memd.backends import cgroup
from anole_memd.backends.memory_blocks import MemoryBlocks
from anole_memd.backends.node_memory import LEFTOVER_BYTES
from anole_memd.client import MemdClient
from anole_memd.errors import SandboxUnavailable
from anole_memd.sandbox import Ended, Supervisor
from anole_shared.units import MiB
from tests.memds import memd_at

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(120)]

BLOCKS = MemoryBlocks()
NUM_NODES = 2
WAIT_S = 60.0

TAKE = "import sys; kept = bytearray(int(sys.argv[1]) * 2**20); print(len(kept), flush=True)"
TAKE_LATER = f"""
import pathlib, time
while not pathlib.Path(__import__("sys").argv[2]).exists():
    time.sleep(0.05)
{TAKE}
"""
TELL = f"""{TAKE}
import re
for line in open("/proc/self/numa_maps"):
    if "anon=" in line and "file=" not in line:
        print(*re.findall(r"N[0-9]+=[0-9]+", line), flush=True)
"""
READ = "import sys; print(len(open(sys.argv[1], 'rb').read()), flush=True)"
HOLD = """
import sys
from anole_memd.backends import mempolicy
mempolicy.binding(int(sys.argv[1]))()
kept = bytearray(int(sys.argv[2]) * 2**20)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def nodes() -> tuple[int, ...]:
    """Memory-only nodes that have memory, all of it offline."""
    try:
        cgroup.parent()
    except SandboxUnavailable as reason:
        pytest.skip(f"needs a writable cgroup v2 with the memory controller: {reason}")
    found = tuple(node for node in BLOCKS.memory_only_nodes() if BLOCKS.of_node(node))
    if len(found) < NUM_NODES:
        pytest.skip("needs two NUMA nodes with memory and without a processor")
    for node in found[:NUM_NODES]:
        for block in filter(BLOCKS.is_online, BLOCKS.of_node(node)):
            BLOCKS.set_state(block, "offline")
    return found[:NUM_NODES]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, nodes: tuple[int, ...]) -> Iterator[Path]:
    """A memd of these nodes, which gives back soon what is not used."""
    socket = tmp_path_factory.mktemp("memd") / "memd.sock"
    variables = {
        "ANOLE_MEMD_BACKEND": "numa",
        "ANOLE_MEMD_NODES": ",".join(map(str, nodes)),
        "ANOLE_MEMD_BUDGET_BYTES": str(2**40),
        "ANOLE_MEMD_FLOOR_BYTES": "0",
        "ANOLE_MEMD_HOLD_S": "0.5",
    }
    with memd_at(socket, **variables):
        yield socket


def region_bytes(nodes: tuple[int, ...]) -> int:
    return len(BLOCKS.of_node(nodes[0])) * BLOCKS.block_bytes()


def pages_migrated() -> int:
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("pgmigrate_success "))


def online(nodes: tuple[int, ...]) -> list[int]:
    return [node for node in nodes if any(map(BLOCKS.is_online, BLOCKS.of_node(node)))]


async def given_back(path: Path, nodes: tuple[int, ...]) -> None:
    """Wait until memd has put all nodes offline by itself."""

    def wait() -> None:
        with MemdClient(path, timeout_s=WAIT_S) as memd:
            for status in memd.watch():
                assert status.num_stuck == 0
                if status.plugged_bytes == 0:
                    return

    async with asyncio.timeout(WAIT_S):
        await asyncio.to_thread(wait)
    assert online(nodes) == []


async def output(supervisor: Supervisor, *command: str) -> tuple[int, Ended, str]:
    """Run a program to its end: its node, its end, and what it wrote."""
    read, write = os.pipe()
    ours = os.dup(1)
    os.dup2(write, 1)  # the program inherits it
    os.close(write)
    try:
        async with supervisor.running(command) as one:
            os.dup2(ours, 1)
            ended = await one.wait()
            assert one.lease.node is not None
            with os.fdopen(read) as said:
                return one.lease.node, ended, said.read()
    finally:
        os.dup2(ours, 1)
        os.close(ours)


async def test_all_anonymous_memory_is_of_the_regions_node_which_goes_offline_without_a_move(
    path: Path, nodes: tuple[int, ...]
) -> None:
    supervisor = Supervisor(path, memory_bytes=region_bytes(nodes))
    node, ended, said = await output(supervisor, sys.executable, "-c", TELL, "100")
    assert ended.status == 0
    places = [word.partition("=") for word in said.split()[1:]]
    assert {place for place, _, _ in places} == {f"N{node}"}
    assert sum(int(pages) for _, _, pages in places) * 4096 > 100 * MiB
    before = pages_migrated()
    await given_back(path, nodes)
    assert pages_migrated() == before


async def test_a_program_that_needs_more_is_killed_and_takes_nothing_of_other_nodes(
    path: Path, nodes: tuple[int, ...]
) -> None:
    num_bytes = region_bytes(nodes)
    supervisor = Supervisor(path, memory_bytes=num_bytes)
    everywhere = [0, *nodes]
    before = {node: BLOCKS.use(node).anon for node in everywhere}
    most = dict(before)
    command = [sys.executable, "-c", TAKE, str(num_bytes // MiB + 100)]
    async with supervisor.running(command) as one:
        waiting = asyncio.create_task(one.wait())
        while not waiting.done():
            most = {node: max(most[node], BLOCKS.use(node).anon) for node in everywhere}
            await asyncio.sleep(0.02)
        ended, its_node = waiting.result(), one.lease.node
    assert (ended.status, ended.is_out_of_memory) == (128 + signal.SIGKILL, True)
    grown = {node: most[node] - before[node] for node in everywhere}
    assert grown.pop(its_node or 0) > num_bytes // 2
    assert max(grown.values()) < 16 * MiB
    await given_back(path, nodes)


async def test_where_a_node_is_full_its_program_is_killed_and_not_a_larger_process(
    path: Path, nodes: tuple[int, ...], tmp_path: Path
) -> None:
    num_bytes = region_bytes(nodes)
    supervisor = Supervisor(path, memory_bytes=num_bytes)
    go = tmp_path / "go"
    async with supervisor.running([sys.executable, "-c", TAKE_LATER, "100", str(go)]) as one:
        hold = [sys.executable, "-c", HOLD, str(one.lease.node), str(num_bytes // MiB * 3 // 4)]
        with subprocess.Popen(  # noqa: ASYNC220 - it only forks
            hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as larger:
            assert larger.stdout is not None
            assert larger.stdout.readline() == "ready\n"
            go.touch()
            ended = await one.wait()
            assert larger.poll() is None
            larger.kill()
    assert (ended.status, ended.is_out_of_memory) == (128 + signal.SIGKILL, True)
    assert ended.peak_bytes < num_bytes // 2
    await given_back(path, nodes)


async def test_files_that_a_program_reads_are_no_part_of_what_it_leaves(
    path: Path, nodes: tuple[int, ...], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    with file.open("wb") as writing:
        writing.write(bytes(8 * MiB))
        writing.flush()
        os.fsync(writing.fileno())
        os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    supervisor = Supervisor(path, memory_bytes=region_bytes(nodes))
    node, ended, said = await output(supervisor, sys.executable, "-c", READ, str(file))
    assert (ended.status, said) == (0, f"{8 * MiB}\n")
    assert ended.peak_bytes > 16 * MiB
    assert BLOCKS.use(node).cached <= LEFTOVER_BYTES
    before = pages_migrated()
    await given_back(path, nodes)
    assert pages_migrated() == before


async def test_who_finds_no_node_free_waits_in_order(path: Path, nodes: tuple[int, ...]) -> None:
    supervisor = Supervisor(path, memory_bytes=region_bytes(nodes), wait_s=60)
    started: list[int] = []
    running: list[int | None] = []

    async def instance(number: int) -> None:
        async with supervisor.running([sys.executable, "-c", TAKE, "10"]) as one:
            started.append(number)
            assert one.lease.node not in running
            running.append(one.lease.node)
            ended = await one.wait()
            running.remove(one.lease.node)
        assert ended.status == 0

    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(instance(number))
            await asyncio.sleep(0.3)
    assert started == list(range(6))
    await given_back(path, nodes)
