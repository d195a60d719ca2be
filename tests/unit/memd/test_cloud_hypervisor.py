import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from anole_memd.backend import NodeHandle
from anole_memd.backends.cloud_hypervisor import CloudHypervisor
from anole_memd.backends.virtio_mem import VirtioMem
from anole_memd.errors import BackendSilent, BackendUnavailable, PartialUnplug, RegionRefused
from anole_shared.units import MiB
from tests.unit.memd.hypervisor_api import (
    FakeCloudHypervisor,
    MemoryZoneConfig,
    cloud_hypervisor,
)

BOOT, HOT = 128 * MiB, 256 * MiB
T = 10.0


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[FakeCloudHypervisor]:
    zones = {
        "boot": MemoryZoneConfig(id="boot", size=1024 * MiB),
        "a": MemoryZoneConfig(id="a", size=BOOT, hotplug_size=HOT),
        "b": MemoryZoneConfig(id="b", size=BOOT, hotplug_size=HOT),
    }
    fake = FakeCloudHypervisor(socket=tmp_path / "api", zones=zones, nodes={"a": 1, "b": 2})
    async with cloud_hypervisor(fake):
        yield fake


@pytest.fixture
async def backend(machine: FakeCloudHypervisor) -> AsyncIterator[VirtioMem]:
    made = VirtioMem(CloudHypervisor(machine.socket), None)
    await made.probe(timeout_s=T)
    machine.resized.clear()
    yield made
    await made.close()


async def test_every_zone_that_can_grow_is_a_region_of_what_it_can_grow_by(
    backend: VirtioMem,
) -> None:
    assert [(slot.region_id, slot.num_bytes) for slot in backend.slots] == [("a", HOT), ("b", HOT)]


async def test_a_zone_is_resized_to_what_it_boots_with_and_the_region(
    backend: VirtioMem, machine: FakeCloudHypervisor
) -> None:
    spec = backend.slots[1]
    await backend.plug(spec, timeout_s=T)
    assert backend.handle(spec.region_id) == NodeHandle(node=2)
    assert await backend.unplug(spec.region_id, timeout_s=T) == HOT
    assert [(one.id, one.desired_ram) for one in machine.resized] == [
        ("b", BOOT + HOT),
        ("b", BOOT),
    ]


async def test_what_the_guest_has_not_plugged_is_missing_of_the_zone_that_changes(
    backend: VirtioMem, machine: FakeCloudHypervisor
) -> None:
    a, b = backend.slots
    await backend.plug(a, timeout_s=T)
    await backend.plug(b, timeout_s=T)
    left = 64 * MiB
    machine.follows = lambda zone: max(zone.hotplugged_size or 0, left if zone.id == "a" else 0)
    with pytest.raises(PartialUnplug) as fault:
        await backend.unplug(a.region_id, timeout_s=0.3)
    assert (fault.value.num_bytes, fault.value.left_bytes) == (HOT - left, left)
    # It stays a's, and is not counted against b.
    assert await backend.unplug(b.region_id, timeout_s=T) == HOT
    with pytest.raises(PartialUnplug):
        await backend.adopt(a, "a", None, timeout_s=T)
    machine.follows = lambda zone: zone.hotplugged_size or 0
    await backend.unplug(a.region_id, timeout_s=T)
    assert await backend.adopt(a, "a", None, timeout_s=T) is None


async def test_zones_change_one_after_the_other(
    backend: VirtioMem, machine: FakeCloudHypervisor
) -> None:
    await asyncio.gather(*(backend.plug(slot, timeout_s=T) for slot in backend.slots))
    assert [one.id for one in machine.resized] == ["a", "b"]


async def test_a_guest_that_does_not_follow_is_silence(
    backend: VirtioMem, machine: FakeCloudHypervisor
) -> None:
    machine.follows = lambda _: 0
    with pytest.raises(BackendSilent):
        await backend.plug(backend.slots[0], timeout_s=0.2)


async def test_a_refusal_has_its_status_and_reason(machine: FakeCloudHypervisor) -> None:
    hypervisor = CloudHypervisor(machine.socket)
    with pytest.raises(RegionRefused, match=r"vm\.resize-zone with 500: .*could not be resized"):
        await hypervisor.request("a", 2 * HOT)
    with pytest.raises(RegionRefused, match="no memory zone c"):
        await hypervisor.request("c", HOT)
    await hypervisor.close()


async def test_a_socket_that_nobody_listens_on_is_found_at_start(tmp_path: Path) -> None:
    backend = VirtioMem(CloudHypervisor(tmp_path / "none"), None)
    with pytest.raises(BackendUnavailable, match=f"does not answer at {tmp_path}/none"):
        await backend.probe(timeout_s=T)
    await backend.close()
