"""Memory of a real guest: QEMU, a stock Debian kernel, its virtio-mem driver, its guest agent.

memd runs beside the guest, as it would for a host that runs functions in virtual machines; and its
NUMA backend runs in the guest, on the guest's own kernel.
"""

import asyncio
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest

from anole_memd.client import MemdClient
from anole_memd.errors import MemdRefused, MemdUnavailable
from anole_shared.ids import RegionId
from anole_shared.messages import RegionReport
from anole_shared.units import MiB
from bench.guest import python
from bench.guest.guest import Guest, Image, image, running
from bench.guest.initramfs import Files
from bench.guest.machine import Machine
from bench.guest.packages import GuestUnavailable
from tests.memds import memd_at

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
REGION_BYTES = 256 * MiB
MACHINE = Machine(devices=3, device_bytes=REGION_BYTES, own_nodes=True)
WAIT_S = 60.0

HOLDER = """
import sys
from pathlib import Path
from anole_memd.client import MemdClient
with MemdClient(Path(sys.argv[1]), timeout_s=60) as memd:
    granted, _ = memd.lease(int(sys.argv[2]), label="instance", purpose="function")
    print(granted.region_id, granted.node, flush=True)
    sys.stdin.read()
"""


def guest_image(more: Files | None = None) -> Image:
    try:
        return image(more)
    except GuestUnavailable as reason:
        pytest.skip(f"no guest can be had here: {reason}")


@asynccontextmanager
async def booted(machine: Machine, more: Files | None = None) -> AsyncIterator[Guest]:
    async with running(guest_image(more), machine) as guest:
        yield guest


def memd_beside(guest: Guest, socket: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """memd for this guest, once it is ready."""
    return memd_at(
        socket,
        ANOLE_MEMD_BACKEND="virtio-mem",
        ANOLE_MEMD_HYPERVISOR_SOCKETS=str(guest.monitor_socket),
        ANOLE_MEMD_GUEST_AGENT_SOCKET=str(guest.agent_socket),
        ANOLE_MEMD_FLOOR_BYTES="0",
        ANOLE_MEMD_BUDGET_BYTES=str(2**40),
    )


@contextmanager
def holder(socket: Path) -> Iterator[tuple[subprocess.Popen[str], RegionId, int]]:
    """A process that leases a region for an instance; with the region and the guest's node."""
    command = [sys.executable, "-c", HOLDER, str(socket), str(REGION_BYTES)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            region_id, node = child.stdout.readline().split()
            yield child, RegionId(region_id), int(node)
        finally:
            child.kill()


async def instance(guest: Guest, node: int) -> None:
    """One in the guest that fills the region; its process id is in /tmp/pid.NODE."""
    mib = REGION_BYTES // MiB - 8
    answer = await guest.shell(
        f"hog {node} {mib} 32 > /tmp/out.{node} 2>&1 & echo $! > /tmp/pid.{node}; "
        f"for i in $(seq 600); do grep -q -e ready -e failed /tmp/out.{node} && break; sleep 0.1; "
        f"done; cat /tmp/out.{node}"
    )
    assert answer.text == "ready\n"


async def end_instance(guest: Guest, node: int) -> None:
    assert (await guest.shell(f"kill -9 $(cat /tmp/pid.{node})")).status == 0


async def told(socket: Path) -> dict[RegionId, RegionReport]:
    def ask() -> dict[RegionId, RegionReport]:
        with MemdClient(socket, timeout_s=WAIT_S) as memd:
            return {region.region_id: region for region in memd.regions()}

    return await asyncio.to_thread(ask)


async def until(socket: Path, region_id: RegionId, state: str) -> RegionReport | None:
    """Wait for memd's word; None where the region is absent, as wanted."""
    async with asyncio.timeout(WAIT_S):
        while True:
            region = (await told(socket)).get(region_id)
            if (region.state if region else "absent") == state:
                return region
            await asyncio.sleep(0.1)


async def plugged(guest: Guest) -> dict[str, int]:
    """What QEMU says that each device has."""
    devices = await guest.qmp.ask("query-memory-devices")
    return {one["data"]["id"]: one["data"]["size"] for one in devices}


async def test_an_instances_memory_is_back_after_its_end_and_memd_may_be_killed_meanwhile(
    tmp_path: Path,
) -> None:
    socket = tmp_path / "memd.sock"
    async with booted(MACHINE) as guest:
        with memd_beside(guest, socket) as first, holder(socket) as (leaver, left, node):
            with holder(socket) as (_, kept, other_node):
                await instance(guest, node)
                await instance(guest, other_node)
                before = await guest.counters()

                # Its manager dies, the instance itself lives on: a named state, tried again.
                leaver.send_signal(signal.SIGKILL)
                stuck = await until(socket, left, "stuck")
                assert stuck is not None
                assert "in use" in stuck.detail
                await end_instance(guest, node)
                await until(socket, left, "absent")
                assert await plugged(guest) == {
                    one: REGION_BYTES if one == kept else 0 for one in MACHINE.device_ids
                }
                after = await guest.counters()
                assert after["pgmigrate_success"] == before["pgmigrate_success"]

                # memd dies, the lease and what is in the region stay.
                first.send_signal(signal.SIGKILL)
                first.wait()
                with memd_beside(guest, socket):
                    again = (await told(socket))[kept]
                    assert (again.state, again.num_bytes) == ("leased", REGION_BYTES)
                    assert again.resident_bytes > REGION_BYTES // 2
                await end_instance(guest, other_node)
            # Holder and memd are gone; the next memd finds that out.
            with memd_beside(guest, socket):
                await until(socket, kept, "free")


async def test_memd_is_killed_while_it_unplugs_and_the_next_one_ends_it(tmp_path: Path) -> None:
    socket = tmp_path / "memd.sock"

    def unplug(region_id: RegionId) -> None:
        with suppress(MemdUnavailable, MemdRefused), MemdClient(socket, timeout_s=WAIT_S) as memd:
            memd.unplug(region_id)

    async with booted(MACHINE) as guest:
        for pause_s in (0.0, 0.02, 0.1):
            with memd_beside(guest, socket) as memd:
                with MemdClient(socket, timeout_s=WAIT_S) as client:
                    region_id = (await asyncio.to_thread(client.plug, REGION_BYTES)).region_id
                unplugging = asyncio.create_task(asyncio.to_thread(unplug, region_id))
                await asyncio.sleep(pause_s)
                memd.send_signal(signal.SIGKILL)
                memd.wait()
                await unplugging
            with memd_beside(guest, socket):
                async with asyncio.timeout(WAIT_S):
                    while (found := (await told(socket)).get(region_id)) is not None:
                        if found.state == "free":  # it had not begun
                            await asyncio.to_thread(unplug, region_id)
                        await asyncio.sleep(0.1)
                assert set((await plugged(guest)).values()) == {0}


IN_THE_GUEST = """
import asyncio, json, subprocess
from anole_memd.backends.memory_blocks import MemoryBlocks
from anole_memd.backends.numa import Numa
from anole_memd.errors import BackendError

async def main():
    numa = Numa(MemoryBlocks(), node_bytes=2**28)
    said = await numa.probe(timeout_s=60)
    spec = next(slot for slot in numa.slots if MemoryBlocks().of_node(int(slot.region_id[4:])))
    plugged = await numa.plug(spec, timeout_s=60)
    node = numa.handle(spec.region_id).node
    hog = subprocess.Popen(["/bin/hog", str(node), "200", "32"], stdout=subprocess.PIPE)
    hog.stdout.readline()
    is_released = await numa.is_released(spec.region_id, timeout_s=60)
    users = await numa.users(spec.region_id)
    try:
        await numa.unplug(spec.region_id, timeout_s=60)
        refusal = ""
    except BackendError as fault:
        refusal = type(fault).__name__
    later = Numa(MemoryBlocks(), node_bytes=2**28)
    await later.probe(timeout_s=60)
    again = await later.adopt(spec, plugged.token, hog.pid, timeout_s=60)
    hog.kill()
    hog.wait()
    num_bytes = await numa.unplug(spec.region_id, timeout_s=60)
    online = sum(map(MemoryBlocks().is_online, MemoryBlocks().of_node(node)))
    print(json.dumps(dict(said=said, plugged=plugged.num_bytes, is_released=is_released,
        is_seen=hog.pid in users, refusal=refusal, adopted=again == plugged, back=num_bytes,
        online=online)))

asyncio.run(main())
"""


async def test_nodes_of_the_guests_own_kernel_are_regions_that_go_offline_empty() -> None:
    guest_image()  # skips where there is none
    modules = ["asyncio", "concurrent.futures.thread", "json", "subprocess"]
    modules.append("anole_memd.backends.numa")
    path = [ROOT / "shared", ROOT / "services/memd"]
    more = python.files(modules, path)
    machine = Machine(devices=2, device_bytes=REGION_BYTES, own_nodes=True)
    async with booted(machine, more) as guest:
        await guest.qemu.request("vm1", REGION_BYTES)
        line = f"{python.command(path)} -c {shlex.quote(IN_THE_GUEST)}"
        await asyncio.sleep(1)
        before = await guest.counters()
        answer = await guest.shell(line)
        after = await guest.counters()
        assert answer.status == 0, answer.text
        assert json.loads(answer.text) == {
            "said": "2 memory-only nodes; all have memory online or none yet, so that none was "
            "tried",
            "plugged": REGION_BYTES,
            "is_released": False,
            "is_seen": True,
            "refusal": "RegionBusy",
            "adopted": True,
            "back": REGION_BYTES,
            "online": 0,
        }
        assert after["pgmigrate_success"] == before["pgmigrate_success"]
        # What is offline in the guest is the hypervisor's for the asking.
        await guest.qemu.request("vm1", 0)
        async with asyncio.timeout(WAIT_S):
            while (await plugged(guest))["vm1"]:  # noqa: ASYNC110 - it is another process's
                await asyncio.sleep(0.05)
