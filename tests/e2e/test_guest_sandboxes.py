"""The tests of sandboxes, in a guest: its kernel has the control groups that this one may lack.

They are the same tests, and the same pytest runs them there.
"""

import asyncio
import pkgutil
import re
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import _pytest
import pytest

from anole_shared.units import MiB
from bench.guest import python
from bench.guest.guest import Guest, Image, image, running
from bench.guest.initramfs import Files
from bench.guest.machine import Machine
from bench.guest.packages import GuestUnavailable

pytestmark = [pytest.mark.guest, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SANDBOX = "tests/integration/test_memd_sandbox.py"
NODES = "tests/integration/test_memd_sandbox_nodes.py"
SERVICES = ("gateway", "scheduler", "worker", "memd")
PATH = [
    *(ROOT / folder for folder in ("shared", "cli", "sim")),
    *(ROOT / "services" / service for service in SERVICES),
    Path(sysconfig.get_path("purelib")),
]
MODULES = (
    *(module.name for module in pkgutil.walk_packages(_pytest.__path__, "_pytest.")),
    *("pytest.__main__", "pytest_asyncio.plugin", "pytest_timeout", "tomllib", "pdb"),
    *("anole_cli.main", "anole_cli.__main__", "anole_cli.services"),
    *("anole_memd.app", "anole_memd.sandbox", "queue", "concurrent.futures.thread"),
)
DISTRIBUTIONS = (
    *("pluggy", "pytest-asyncio", "pytest-timeout"),
    *("opentelemetry-api", "opentelemetry-sdk"),
)
REGION_BYTES = 256 * MiB
MACHINE = Machine(devices=2, device_bytes=REGION_BYTES, own_nodes=True, vcpus=2)
RUN_S, START_S = 400.0, 120.0

WAIT_FOR_A_NODE = """
import asyncio
from pathlib import Path
from anole_memd.sandbox import Supervisor

async def main():
    supervisor = Supervisor(Path("/tmp/memd.sock"), memory_bytes=2**28, wait_s=120)

    async def instance(number):
        async with supervisor.running(["/bin/sleep", "0.2"]) as one:
            print(number, one.lease.region_id, flush=True)
            await one.wait()

    async with asyncio.TaskGroup() as tasks:
        for number in range(3):
            tasks.create_task(instance(number))
            await asyncio.sleep(0.3)
        print("waiting", flush=True)

asyncio.run(main())
"""


def guest_image(test: str) -> Image:
    sources = [ROOT / name for name in (test, "tests/memds.py", "pyproject.toml")]
    kept: Files = {
        python.inside(source): (stat.S_IFREG | 0o644, source.read_bytes()) for source in sources
    }
    more = python.files(MODULES, PATH) | python.metadata(DISTRIBUTIONS) | python.with_folders(kept)
    try:
        return image(more)
    except GuestUnavailable as reason:
        pytest.skip(f"no guest can be had here: {reason}")


async def plug(guest: Guest, device_ids: Sequence[str]) -> None:
    """As a hypervisor does that has no memd beside it; returns when the guest has it all."""
    for device_id in device_ids:
        await guest.qemu.request(device_id, REGION_BYTES)
    async with asyncio.timeout(RUN_S):
        while not await _have_all(guest, device_ids):  # noqa: ASYNC110 - it is another process's
            await asyncio.sleep(0.1)


async def _have_all(guest: Guest, device_ids: Sequence[str]) -> bool:
    found = {one.device_id: one.size_bytes for one in await guest.qemu.devices()}
    return all(found[device_id] == REGION_BYTES for device_id in device_ids)


async def passed(guest: Guest, test: str) -> list[str]:
    """Run a file of tests in the guest; those that passed, in order."""
    # What is in the guest's first file system is in memory for good: files that tests make lie on
    # a disk, from which they are read.
    answer = await guest.shell("mke2fs /dev/ram0 && mkdir /disk && mount /dev/ram0 /disk")
    assert answer.status == 0, answer.text
    answer = await guest.shell(
        f"cd {ROOT} && HOME=/tmp {python.command(PATH)} -m pytest -q -rA -p no:cacheprovider "
        f"--basetemp=/disk/pytest --durations=0 {test}",
        timeout_s=RUN_S,
    )
    assert answer.status == 0, answer.text
    return re.findall(r"^PASSED (\S+)$", answer.text, re.MULTILINE)


async def until(guest: Guest, file: str, words: str) -> str:
    """Wait until a program in the guest has written this; all that it wrote."""
    said = ""
    try:
        async with asyncio.timeout(START_S):
            while words not in said:
                said = (await guest.shell(f"cat /tmp/{file}")).text
                await asyncio.sleep(0.2)
    except TimeoutError:
        pytest.fail(f"{file} has not said {words!r} within {START_S:g} s, but {said}")
    return said


def collected(test: str) -> list[str]:
    """All tests of a file, in order."""
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", test],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return re.findall(r"^(tests/\S+)$", said, re.MULTILINE)


async def test_programs_are_confined_by_control_groups() -> None:
    """All of that file's tests, each of which is skipped where there are none."""
    async with running(guest_image(SANDBOX), MACHINE) as guest:
        names = await passed(guest, SANDBOX)
    assert names == await asyncio.to_thread(collected, SANDBOX)
    assert len(names) == 8


async def test_programs_are_confined_to_nodes() -> None:
    async with running(guest_image(NODES), MACHINE) as guest:
        await plug(guest, MACHINE.device_ids)
        names = await passed(guest, NODES)
    assert names == await asyncio.to_thread(collected, NODES)
    assert names


async def test_programs_wait_in_order_while_no_node_has_memory() -> None:
    memd = {
        "ANOLE_MEMD_SOCKET": "/tmp/memd.sock",
        "ANOLE_MEMD_BACKEND": "numa",
        "ANOLE_MEMD_NODE_BYTES": str(REGION_BYTES),
        "ANOLE_MEMD_BUDGET_BYTES": str(2**40),
    }
    variables = " ".join(f"{name}={value}" for name, value in memd.items())
    async with running(guest_image(NODES), MACHINE) as guest:
        start = f"cd /tmp; export HOME=/tmp; {variables} {python.command(PATH)}"
        await guest.shell(f"({start} -m anole_cli memd) > /tmp/memd 2>&1 &")
        await until(guest, "memd", "is ready")
        await guest.shell(f"({start} -c '{WAIT_FOR_A_NODE}') > /tmp/instances 2>&1 &")
        await until(guest, "instances", "waiting")
        await asyncio.sleep(2)  # several looks of memd's
        assert (await guest.shell("cat /tmp/instances")).text == "waiting\n"
        await plug(guest, ["vm2"])
        said = await until(guest, "instances", "2 node")
        assert re.fullmatch(r"waiting\n0 (node\d)\n1 \1\n2 \1\n", said)
