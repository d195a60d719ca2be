import asyncio
import errno
import time
from pathlib import Path

import pytest

from anole_memd.backend import NodeHandle
from anole_memd.backends.cpusets import Cpusets
from anole_memd.backends.numa import Numa
from anole_memd.core.region import RegionSpec
from anole_memd.errors import (
    BackendSilent,
    BackendUnavailable,
    PartialUnplug,
    RegionBusy,
    RegionRefused,
)
from anole_shared.ids import RegionId
from tests.unit.memd.sysfs import BLOCK_BYTES, FakeBlocks

NODE1 = RegionSpec(region_id=RegionId("node1"), num_bytes=2 * BLOCK_BYTES)
T = 5.0


@pytest.fixture
def blocks(tmp_path: Path) -> FakeBlocks:
    return FakeBlocks(tmp_path, {0: (), 1: (32, 33), 2: (40, 41)})


@pytest.fixture
async def numa(blocks: FakeBlocks) -> Numa:
    backend = Numa(blocks)
    await backend.probe(timeout_s=T)
    return backend


async def test_every_node_without_a_processor_is_a_region_of_its_size(numa: Numa) -> None:
    assert [(slot.region_id, slot.num_bytes) for slot in numa.slots] == [
        ("node1", 2 * BLOCK_BYTES),
        ("node2", 2 * BLOCK_BYTES),
    ]
    assert numa.block_bytes == BLOCK_BYTES


async def test_the_dry_run_leaves_memory_as_it_was(blocks: FakeBlocks) -> None:
    blocks.set_state(40, "online_movable")
    blocks.changes.clear()
    said = await Numa(blocks).probe(timeout_s=T)
    assert "node1 was put online and offline" in said
    assert (blocks.states(1), blocks.states(2)) == ([False, False], [True, False])
    assert {block for block, _ in blocks.changes} == {32, 33}


async def test_nodes_whose_memory_comes_later_are_regions_if_their_size_is_known(
    blocks: FakeBlocks,
) -> None:
    blocks.put("sys/devices/system/node/possible", "0-3\n")
    blocks.use_node(3)
    backend = Numa(blocks, nodes=(3,), node_bytes=2 * BLOCK_BYTES)
    await backend.probe(timeout_s=T)
    spec = backend.slots[0]
    assert (spec.region_id, spec.num_bytes) == ("node3", 2 * BLOCK_BYTES)
    assert not backend.is_there(spec)
    with pytest.raises(RegionRefused, match=rf"plugged 0 of the {2 * BLOCK_BYTES} bytes of node3"):
        await backend.plug(spec, timeout_s=T)
    blocks.add_block(3, 50)
    assert not backend.is_there(spec)
    blocks.add_block(3, 51)
    assert backend.is_there(spec)
    assert (await backend.plug(spec, timeout_s=T)).num_bytes == 2 * BLOCK_BYTES


@pytest.mark.parametrize(
    ("path", "text", "remedy"),
    [
        ("sys/devices/system/memory/auto_online_blocks", "online", "echo online_movable >"),
        ("proc/sys/kernel/numa_balancing", "1", "sysctl kernel.numa_balancing=0"),
        ("sys/devices/system/node/has_cpu", "0-2", "ANOLE_MEMD_NODE_BYTES"),
    ],
)
async def test_a_kernel_that_could_not_give_memory_back_is_found_at_start(
    blocks: FakeBlocks, path: str, text: str, remedy: str
) -> None:
    blocks.put(path, text)
    with pytest.raises(BackendUnavailable, match=remedy):
        await Numa(blocks).probe(timeout_s=T)
    assert blocks.changes == []


async def test_a_kernel_without_hotplug_is_found_at_start(tmp_path: Path) -> None:
    blocks = FakeBlocks(tmp_path, {0: ()})
    (blocks.memory / "block_size_bytes").unlink()
    with pytest.raises(BackendUnavailable, match="MEMORY_HOTPLUG"):
        await Numa(blocks).probe(timeout_s=T)


async def test_plug_and_unplug_put_all_blocks_of_the_node_online_and_offline(
    numa: Numa, blocks: FakeBlocks
) -> None:
    assert (await numa.plug(NODE1, timeout_s=T)).num_bytes == NODE1.num_bytes
    assert (blocks.states(1), blocks.states(2)) == ([True, True], [False, False])
    assert numa.handle(NODE1.region_id) == NodeHandle(node=1, cpuset=None)
    assert (await numa.plug(NODE1, timeout_s=T)).num_bytes == NODE1.num_bytes
    assert await numa.unplug(NODE1.region_id, timeout_s=T) == NODE1.num_bytes
    assert blocks.states(1) == [False, False]
    assert await numa.unplug(NODE1.region_id, timeout_s=T) == 0


async def test_memory_that_a_process_uses_is_not_taken_offline(
    numa: Numa, blocks: FakeBlocks
) -> None:
    await numa.plug(NODE1, timeout_s=T)
    blocks.use_node(1, anon_kib=4)
    blocks.put("proc/77/numa_maps", "7f00 bind:1 anon=1 dirty=1 N1=1 kernelpagesize_kB=4\n")
    blocks.put("proc/78/numa_maps", "7f00 default anon=1 dirty=1 N0=1 kernelpagesize_kB=4\n")
    blocks.changes.clear()
    assert not await numa.is_released(NODE1.region_id, timeout_s=T)
    with pytest.raises(RegionBusy, match=r"in processes: 77$"):
        await numa.unplug(NODE1.region_id, timeout_s=T)
    assert (blocks.changes, blocks.states(1)) == ([], [True, True])


async def test_a_few_pages_of_files_that_a_holder_left_are_no_use_of_the_node(
    numa: Numa, blocks: FakeBlocks
) -> None:
    await numa.plug(NODE1, timeout_s=T)
    blocks.use_node(1, file_kib=64, shmem_kib=8)
    assert await numa.is_released(NODE1.region_id, timeout_s=T)
    assert await numa.unplug(NODE1.region_id, timeout_s=T) == NODE1.num_bytes


async def test_files_that_the_group_has_read_are_dropped_first(
    blocks: FakeBlocks, tmp_path: Path
) -> None:
    parent = tmp_path / "cgroup"
    group = parent / "node1"
    group.mkdir(parents=True)
    (parent / "cgroup.controllers").write_text("cpuset cpu memory")
    for name in ("cgroup.procs", "memory.reclaim"):
        (group / name).write_text("")
    numa = Numa(blocks, cpusets=Cpusets(parent))
    await numa.probe(timeout_s=T)
    await numa.plug(NODE1, timeout_s=T)
    assert numa.handle(NODE1.region_id) == NodeHandle(node=1, cpuset=group)
    assert (group / "cpuset.mems").read_text() == "1"
    assert (parent / "cgroup.subtree_control").read_text() == "+cpuset +memory"
    blocks.use_node(1, file_kib=4096)
    with pytest.raises(RegionBusy, match=r"4\.0 MiB of files"):
        await numa.unplug(NODE1.region_id, timeout_s=T)
    assert (group / "memory.reclaim").read_text() == f"{4096 * 1024} swappiness=0"


async def test_a_busy_block_is_tried_again_and_the_others_are_not(
    numa: Numa, blocks: FakeBlocks
) -> None:
    await numa.plug(NODE1, timeout_s=T)
    blocks.changes.clear()

    def once(block: int, _state: str) -> int:
        return errno.EBUSY if block == 33 and blocks.changes.count((33, "offline")) == 1 else 0

    blocks.faults = once
    assert await numa.unplug(NODE1.region_id, timeout_s=T) == NODE1.num_bytes
    assert blocks.changes == [(32, "offline"), (33, "offline"), (33, "offline")]


async def test_blocks_that_stay_busy_are_given_up_with_what_came_back(
    numa: Numa, blocks: FakeBlocks
) -> None:
    await numa.plug(NODE1, timeout_s=T)
    blocks.faults = lambda block, _: errno.EBUSY if block == 33 else 0
    with pytest.raises(PartialUnplug, match="memory33") as fault:
        await numa.unplug(NODE1.region_id, timeout_s=T)
    assert (fault.value.num_bytes, fault.value.left_bytes) == (BLOCK_BYTES, BLOCK_BYTES)
    with pytest.raises(PartialUnplug, match="1 of the 2 memory blocks"):
        await numa.adopt(NODE1, "", None, timeout_s=T)
    with pytest.raises(RegionBusy, match="after 3 tries"):
        await numa.unplug(NODE1.region_id, timeout_s=T)
    blocks.faults = lambda _block, _state: 0
    assert await numa.unplug(NODE1.region_id, timeout_s=T) == BLOCK_BYTES


async def test_another_error_is_not_tried_again(numa: Numa, blocks: FakeBlocks) -> None:
    await numa.plug(NODE1, timeout_s=T)
    blocks.changes.clear()
    blocks.faults = lambda _block, _state: errno.EPERM
    with pytest.raises(RegionRefused, match="EPERM"):
        await numa.unplug(NODE1.region_id, timeout_s=T)
    assert len(blocks.changes) == 1


async def test_a_kernel_that_does_not_answer_is_left_alone_in_time(
    numa: Numa, blocks: FakeBlocks
) -> None:
    await numa.plug(NODE1, timeout_s=T)
    blocks.hangs.clear()
    begin = time.monotonic()
    with pytest.raises(BackendSilent, match=r"has not answered within 0\.\d+ s"):
        await numa.unplug(NODE1.region_id, timeout_s=0.05)
    assert time.monotonic() - begin < T
    blocks.hangs.set()
    async with asyncio.timeout(T):
        while any(blocks.states(1)):  # noqa: ASYNC110 - what it was told, it does in the end
            await asyncio.sleep(0.01)
    assert await numa.unplug(NODE1.region_id, timeout_s=T) == 0


async def test_a_plug_that_fails_half_way_is_undone(numa: Numa, blocks: FakeBlocks) -> None:
    blocks.faults = lambda block, state: (
        errno.ENOMEM if (block, state) == (33, "online_movable") else 0
    )
    with pytest.raises(RegionRefused, match="ENOMEM"):
        await numa.plug(NODE1, timeout_s=T)
    assert blocks.states(1) == [False, False]


async def test_memory_in_a_zone_of_the_kernels_own_is_refused(
    numa: Numa, blocks: FakeBlocks
) -> None:
    blocks.set_state(32, "online_movable")
    blocks.put("sys/devices/system/memory/memory32/valid_zones", "Normal\n")
    with pytest.raises(RegionRefused, match="zone Normal"):
        await numa.plug(NODE1, timeout_s=T)
    assert blocks.states(1) == [True, False]


async def test_an_earlier_memds_region_is_found_again(numa: Numa, blocks: FakeBlocks) -> None:
    plugged = await numa.plug(NODE1, timeout_s=T)
    again = Numa(blocks)
    await again.probe(timeout_s=T)
    assert await again.adopt(NODE1, plugged.token, 77, timeout_s=T) == plugged
    await again.unplug(NODE1.region_id, timeout_s=T)
    assert await again.adopt(NODE1, plugged.token, None, timeout_s=T) is None


async def test_what_is_used_of_a_region_is_told(numa: Numa, blocks: FakeBlocks) -> None:
    blocks.use_node(1, anon_kib=1000)
    assert await numa.resident_bytes(NODE1.region_id) == 1100 * 1024
