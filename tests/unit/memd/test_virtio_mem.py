import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from anole_memd.backend import NodeHandle
from anole_memd.backends.guest_agent import GuestAgent
from anole_memd.backends.qemu import Qemu
from anole_memd.backends.virtio_mem import VirtioMem
from anole_memd.core.region import RegionSpec
from anole_memd.errors import (
    BackendSilent,
    BackendUnavailable,
    PartialUnplug,
    RegionBusy,
    RegionRefused,
)
from anole_shared.ids import RegionId
from anole_shared.units import MiB
from tests.unit.memd.fake_qemu import BLOCK_BYTES, DEVICE_BYTES, FakeQemu, fake_qemu

VM1 = RegionSpec(region_id=RegionId("vm1"), num_bytes=DEVICE_BYTES)
T = 10.0


@pytest.fixture
async def qemu(tmp_path: Path) -> AsyncIterator[FakeQemu]:
    async with fake_qemu(tmp_path) as running:
        yield running


@pytest.fixture
async def backend(qemu: FakeQemu) -> AsyncIterator[VirtioMem]:
    made = backend_of(qemu)
    await made.probe(timeout_s=T)
    qemu.said.clear()
    yield made
    await made.close()


def backend_of(qemu: FakeQemu) -> VirtioMem:
    return VirtioMem(Qemu(qemu.qmp), GuestAgent(qemu.agent))


def changes(qemu: FakeQemu) -> list[object]:
    """What was asked for in which order: blocks to take offline, sizes to have."""
    found: list[object] = []
    for command, arguments in qemu.said:
        if command == "guest-set-memory-blocks":
            found.append([block["phys-index"] for block in arguments["mem-blks"]])
        elif command == "qom-set":
            found.append(arguments["value"])
    return found


async def test_every_device_is_a_region_and_one_is_tried(qemu: FakeQemu) -> None:
    backend = backend_of(qemu)
    said = await backend.probe(timeout_s=T)
    assert said == "QEMU has 2 devices of 256 MiB; vm1 was plugged and unplugged"
    assert [slot.region_id for slot in backend.slots] == ["vm1", "vm2"]
    assert backend.block_bytes == BLOCK_BYTES
    assert [device.size for device in qemu.devices.values()] == [0, 0]
    await backend.close()


async def test_the_dry_run_leaves_devices_in_use_alone(qemu: FakeQemu) -> None:
    qemu.devices["vm1"].requested = qemu.devices["vm2"].requested = DEVICE_BYTES
    backend = backend_of(qemu)
    assert "none was tried" in await backend.probe(timeout_s=T)
    assert changes(qemu) == []
    await backend.close()


async def test_blocks_go_offline_before_the_device_shrinks(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    assert await backend.unplug(VM1.region_id, timeout_s=T) == DEVICE_BYTES
    assert changes(qemu) == [DEVICE_BYTES, [32, 33], 0]
    assert await backend.unplug(VM1.region_id, timeout_s=T) == 0


async def test_a_holder_is_told_the_guests_number_of_the_node(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    assert qemu.devices["vm1"].node == 1
    assert backend.handle(VM1.region_id) == NodeHandle(node=2)
    with pytest.raises(RegionRefused, match="no NUMA node"):
        backend.handle(RegionId("vm2"))


async def test_memory_that_a_process_of_the_guest_uses_is_left_to_it(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.said.clear()
    qemu.anon_kib[2] = 4
    assert not await backend.is_released(VM1.region_id, timeout_s=T)
    with pytest.raises(RegionBusy, match="4096 bytes of vm1 are in use in the guest"):
        await backend.unplug(VM1.region_id, timeout_s=T)
    assert changes(qemu) == []
    qemu.anon_kib[2] = 0
    assert await backend.is_released(VM1.region_id, timeout_s=T)
    assert await backend.unplug(VM1.region_id, timeout_s=T) == DEVICE_BYTES


async def test_busy_blocks_are_tried_three_times_and_the_device_is_not_asked(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.said.clear()
    qemu.busy = lambda block: block == 33
    with pytest.raises(RegionBusy, match=r"1 memory blocks of vm1 .* \(EBUSY, first memory33\)"):
        await backend.unplug(VM1.region_id, timeout_s=T)
    assert changes(qemu) == [[32, 33], [33], [33]]
    qemu.busy = lambda _: False
    assert await backend.unplug(VM1.region_id, timeout_s=T) == DEVICE_BYTES


async def test_plugging_again_what_was_half_unplugged_starts_from_nothing(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.offline.add(32)
    with pytest.raises(PartialUnplug, match=f"asked for {DEVICE_BYTES}"):
        await backend.adopt(VM1, "vm1", None, timeout_s=T)
    qemu.said.clear()
    await backend.plug(VM1, timeout_s=T)
    assert changes(qemu) == [0, DEVICE_BYTES]
    assert await backend.adopt(VM1, "vm1", None, timeout_s=T) is not None


async def test_what_is_plugged_is_not_plugged_twice(backend: VirtioMem, qemu: FakeQemu) -> None:
    first = await backend.plug(VM1, timeout_s=T)
    qemu.said.clear()
    assert await backend.plug(VM1, timeout_s=T) == first
    assert changes(qemu) == []


async def test_a_partial_unplug_says_how_much_came_back_and_goes_on(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.follows = lambda device: max(device.requested, min(device.size, 10 * MiB))
    with pytest.raises(PartialUnplug) as fault:
        await backend.unplug(VM1.region_id, timeout_s=0.2)
    assert fault.value.left_bytes == 10 * MiB
    assert fault.value.num_bytes == DEVICE_BYTES - 10 * MiB
    qemu.follows = lambda device: device.requested
    qemu.said.clear()
    assert await backend.unplug(VM1.region_id, timeout_s=T) == 0
    assert await backend.adopt(VM1, "vm1", None, timeout_s=T) is None


async def test_a_driver_that_sleeps_after_a_failure_is_woken(
    backend: VirtioMem, qemu: FakeQemu
) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.follows = lambda device: device.size
    with pytest.raises(BackendSilent):
        await backend.unplug(VM1.region_id, timeout_s=0.2)
    qemu.said.clear()
    with pytest.raises(BackendSilent):
        await backend.unplug(VM1.region_id, timeout_s=0.2)
    # The same size again would not be told to the guest.
    assert changes(qemu) == [[32, 33], DEVICE_BYTES, 0]


@pytest.mark.parametrize("command", ["query-memory-devices", "qom-set", "guest-set-memory-blocks"])
async def test_one_that_never_answers_is_left_in_time(
    backend: VirtioMem, qemu: FakeQemu, command: str
) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.silent.add(command)
    begin = time.monotonic()
    with pytest.raises(BackendSilent, match="has not answered within"):
        await backend.unplug(VM1.region_id, timeout_s=0.2)
    assert time.monotonic() - begin < T
    qemu.silent.clear()
    assert await backend.unplug(VM1.region_id, timeout_s=T) == DEVICE_BYTES


async def test_a_guest_that_plugs_nothing_is_silence(backend: VirtioMem, qemu: FakeQemu) -> None:
    qemu.follows = lambda _: 0
    with pytest.raises(BackendSilent, match="vm1 was asked to grow"):
        await backend.plug(VM1, timeout_s=0.2)


async def test_a_refusal_has_qemus_own_words(backend: VirtioMem, qemu: FakeQemu) -> None:
    qemu.refused["qom-set"] = "'requested-size' cannot be set"
    with pytest.raises(RegionRefused, match="'requested-size' cannot be set"):
        await backend.plug(VM1, timeout_s=T)


async def test_a_lost_connection_is_made_again(backend: VirtioMem, qemu: FakeQemu) -> None:
    await backend.plug(VM1, timeout_s=T)
    qemu.drop_connections()
    await asyncio.sleep(0.05)
    with pytest.raises(BackendSilent, match="does not answer at"):
        await backend.unplug(VM1.region_id, timeout_s=T)
    for _ in range(2):  # two connections were lost
        try:
            assert await backend.unplug(VM1.region_id, timeout_s=T) == DEVICE_BYTES
        except BackendSilent:
            continue
        return
    pytest.fail("the connections are not made again")


async def test_memory_that_stays_offline_in_the_guest_is_unplugged_again(
    backend: VirtioMem, qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anole_memd.backends.virtio_mem._ONLINE_PAUSE_S", 0.001)
    monkeypatch.setattr(type(qemu), "_guest_get_memory_blocks", lambda _: [])
    with pytest.raises(RegionRefused, match="leaves memory of vm1 offline: write online_movable"):
        await backend.plug(VM1, timeout_s=T)
    assert qemu.devices["vm1"].size == 0


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("auto_online", "offline", "echo online_movable >"),
        ("numa_balancing", "1", "echo 0 > /proc/sys/kernel/numa_balancing"),
        ("devices", {}, "one device for each region"),
        ("refused", {"query-memory-devices": "no"}, "check the sockets' paths"),
    ],
)
async def test_a_guest_that_could_not_give_memory_back_is_found_at_start(
    qemu: FakeQemu, name: str, value: object, remedy: str
) -> None:
    setattr(qemu, name, value)
    backend = backend_of(qemu)
    with pytest.raises(BackendUnavailable, match=remedy):
        await backend.probe(timeout_s=T)
    assert changes(qemu) == []
    await backend.close()


async def test_a_device_of_an_odd_size_is_found_at_start(
    qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "_guest_get_memory_block_info", lambda: {"size": 96 * MiB})
    backend = backend_of(qemu)
    with pytest.raises(BackendUnavailable, match="give it another size"):
        await backend.probe(timeout_s=T)
    await backend.close()


async def test_a_socket_that_nobody_listens_on_is_found_at_start(tmp_path: Path) -> None:
    backend = VirtioMem(Qemu(tmp_path / "qmp"), None)
    with pytest.raises(BackendUnavailable, match=f"QEMU does not answer at {tmp_path}/qmp"):
        await backend.probe(timeout_s=T)


async def test_without_an_agent_the_device_just_shrinks(qemu: FakeQemu) -> None:
    backend = VirtioMem(Qemu(qemu.qmp), None)
    await backend.probe(timeout_s=T)
    qemu.said.clear()
    await backend.plug(VM1, timeout_s=T)
    assert backend.handle(VM1.region_id) == NodeHandle(node=1)
    assert await backend.is_released(VM1.region_id, timeout_s=T)
    assert await backend.unplug(VM1.region_id, timeout_s=T) == DEVICE_BYTES
    assert changes(qemu) == [DEVICE_BYTES, 0]
    await backend.close()


async def test_regions_of_one_guest_change_side_by_side(backend: VirtioMem, qemu: FakeQemu) -> None:
    await asyncio.gather(*(backend.plug(slot, timeout_s=T) for slot in backend.slots))
    unplugged = await asyncio.gather(
        *(backend.unplug(slot.region_id, timeout_s=T) for slot in backend.slots)
    )
    assert unplugged == [DEVICE_BYTES, DEVICE_BYTES]
    assert qemu.offline == {32, 33, 34, 35}
