"""Numa: regions are memory-only NUMA nodes of this kernel.

All memory of a node is in ZONE_MOVABLE, and only a region's holder is bound to it. When that holder
has ended, the node's memory blocks are empty and go offline without a page being moved. In a guest
the hypervisor can have them then; see virtio_mem.py, which does both from outside.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from anole_memd.backend import Handle, NodeHandle, Plugged
from anole_memd.backends.cpusets import Cpusets
from anole_memd.backends.left_behind import in_time
from anole_memd.backends.memory_blocks import MOVABLE, MemoryBlocks
from anole_memd.backends.node_memory import OFFLINE_ATTEMPTS, ONLINE_MOVABLE, still_busy
from anole_memd.core.region import RegionSpec
from anole_memd.errors import (
    BackendError,
    BackendUnavailable,
    PartialUnplug,
    RegionBusy,
    RegionRefused,
)
from anole_shared.ids import RegionId
from anole_shared.units import MiB

_PREFIX = "node"

ResultT = TypeVar("ResultT")


class Numa:
    """A Backend: one region a node."""

    name = "numa"

    def __init__(
        self,
        blocks: MemoryBlocks,
        *,
        nodes: Sequence[int] = (),
        node_bytes: int | None = None,
        cpusets: Cpusets | None = None,
    ) -> None:
        """What to use.

        Args:
            blocks: this kernel's.
            nodes: those that are memd's; none: all without a processor.
            node_bytes: the size of a node that has no memory yet, because a hypervisor plugs it.
            cpusets: makes a control group for each node; None: holders bind themselves.
        """
        self._blocks = blocks
        self._nodes = tuple(nodes)
        self._node_bytes = node_bytes
        self._cpusets = cpusets
        self._block_bytes = 0
        self._slots: tuple[RegionSpec, ...] = ()

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    @property
    def slots(self) -> tuple[RegionSpec, ...]:
        return self._slots

    async def probe(self, *, timeout_s: float) -> str:
        """See Backend. Puts the first node that is offline online, and offline again."""
        try:
            found = await in_time(self._look, timeout_s=timeout_s, what="memory blocks")
        except OSError as fault:
            raise BackendUnavailable(
                f"this kernel has no memory hotplug ({fault})", "use one with MEMORY_HOTPLUG"
            ) from fault
        self._block_bytes, self._slots = found
        idle = next((spec for spec in self._slots if self._is_offline(spec.region_id)), None)
        size = f"{len(self._slots)} memory-only nodes"
        if idle is None:
            return f"{size}; all have memory online or none yet, so that none was tried"
        try:
            await self.plug(idle, timeout_s=timeout_s)
            await self.unplug(idle.region_id, timeout_s=timeout_s)
        except BackendError as fault:
            raise BackendUnavailable(
                f"{idle.region_id} cannot be put online and offline ({fault})",
                "start memd as root, and keep this node to itself",
            ) from fault
        return f"{size}; {idle.region_id} was put online and offline"

    def _look(self) -> tuple[int, tuple[RegionSpec, ...]]:
        block_bytes = self._blocks.block_bytes()
        auto_online = self._blocks.auto_online()
        if auto_online != ONLINE_MOVABLE:
            raise BackendUnavailable(
                f"new memory would not be {ONLINE_MOVABLE} but {auto_online or 'unknown'}, and "
                "could not be given back",
                f"echo {ONLINE_MOVABLE} > {self._blocks.memory}/auto_online_blocks",
            )
        if self._blocks.numa_balancing() not in {"0", ""}:
            raise BackendUnavailable(
                "this kernel moves pages between nodes by itself", "sysctl kernel.numa_balancing=0"
            )
        slots = tuple(
            RegionSpec(region_id=_region_id(node), num_bytes=num_bytes)
            for node in self._nodes or self._blocks.memory_only_nodes()
            if (num_bytes := len(self._blocks.of_node(node)) * block_bytes or self._node_bytes)
        )
        if not slots:
            raise BackendUnavailable(
                "no memory-only NUMA node is here",
                "have the hypervisor or the firmware make some, and where their memory is plugged "
                "later set ANOLE_MEMD_NODE_BYTES to the size of each",
            )
        return block_bytes, slots

    def _is_offline(self, region_id: RegionId) -> bool:
        blocks = self._blocks.of_node(_node(region_id))
        return bool(blocks) and not any(map(self._blocks.is_online, blocks))

    async def plug(self, region: RegionSpec, *, timeout_s: float) -> Plugged:
        """See Backend: puts the node's blocks online."""
        act = partial(self._put_online, region)
        num_bytes = await self._told(act, timeout_s, f"{region.region_id} was put online")
        return Plugged(num_bytes=num_bytes, token=region.region_id)

    def _put_online(self, region: RegionSpec) -> int:
        region_id = region.region_id
        node = _node(region_id)
        if not self.is_there(region):
            raise RegionRefused(
                f"its hypervisor has plugged {self._num_bytes(node)} of the {region.num_bytes} "
                f"bytes of {region_id}"
            )
        blocks = self._blocks.of_node(node)
        done: list[int] = []
        try:
            for block in blocks:
                if not self._blocks.is_online(block):
                    self._blocks.set_state(block, ONLINE_MOVABLE)
                    done.append(block)
            self._check_zones(region_id, blocks)
            if self._cpusets is not None:
                self._cpusets.make(node)
        except (OSError, RegionRefused):
            for block in done:
                self._blocks.set_state(block, "offline")
            raise
        return len(blocks) * self._block_bytes

    def _check_zones(self, region_id: RegionId, blocks: Sequence[int]) -> None:
        others = {self._blocks.zone(block) for block in blocks} - {MOVABLE}
        if others:
            raise RegionRefused(
                f"memory of {region_id} is in zone {', '.join(sorted(others))}, where the kernel "
                f"keeps its own: put its blocks offline and {ONLINE_MOVABLE}"
            )

    async def unplug(self, region_id: RegionId, *, timeout_s: float, force: bool = False) -> int:  # noqa: ARG002 - nobody's pages can be taken away
        """See Backend: puts the node's blocks offline, if nobody has memory there."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        done: list[int] = []

        def put_offline() -> Awaitable[list[int]]:
            act = partial(self._put_offline, region_id, done)
            return self._told(act, deadline_s - loop.time(), f"{region_id} was put offline")

        busy = await still_busy(put_offline)
        num_bytes = len(done) * self._block_bytes
        if not busy:
            return num_bytes
        what = (
            f"{len(busy)} memory blocks of {region_id} stay online after {OFFLINE_ATTEMPTS} tries "
            f"(first memory{busy[0]}, EBUSY): pages are pinned, or are the kernel's own"
        )
        if done:
            left_bytes = len(busy) * self._block_bytes
            raise PartialUnplug(what, num_bytes=num_bytes, left_bytes=left_bytes)
        raise RegionBusy(what)

    def _put_offline(self, region_id: RegionId, done: list[int]) -> list[int]:
        """Adds to done what went offline; the blocks that are busy."""
        node = _node(region_id)
        online = [block for block in self._blocks.of_node(node) if self._blocks.is_online(block)]
        if online:
            self._check_empty(region_id, node)
        busy: list[int] = []
        for block in online:
            try:
                self._blocks.set_state(block, "offline")
            except OSError as fault:
                if fault.errno not in {errno.EBUSY, errno.EAGAIN}:
                    raise
                busy.append(block)
            else:
                done.append(block)
        return busy

    def _check_empty(self, region_id: RegionId, node: int) -> None:
        use = self._blocks.use(node)
        if self._cpusets is not None and not use.anon and use.cached:
            self._cpusets.drop_files(node, use.cached)
            use = self._blocks.use(node)
        if use.in_the_way:
            who = ", ".join(map(str, self._users(node))) or "unknown"
            raise RegionBusy(
                f"{region_id} is in use: {use.anon / MiB:.1f} MiB of processes and "
                f"{use.cached / MiB:.1f} MiB of files and shared memory; seen in processes: {who}"
            )

    async def adopt(
        self, region: RegionSpec, token: str, holder: int | None, *, timeout_s: float
    ) -> Plugged | None:
        """See Backend. The node is where it was."""
        del token, holder
        region_id = region.region_id
        act = partial(self._online_blocks, region_id)
        there, online = await self._told(act, timeout_s, f"{region_id} was looked for")
        if not online:
            return None
        if online == there:
            return Plugged(num_bytes=there * self._block_bytes, token=region_id)
        raise PartialUnplug(
            f"{online} of the {there} memory blocks of {region_id} are online",
            num_bytes=0,
            left_bytes=online * self._block_bytes,
        )

    def _online_blocks(self, region_id: RegionId) -> tuple[int, int]:
        blocks = self._blocks.of_node(_node(region_id))
        return len(blocks), sum(map(self._blocks.is_online, blocks))

    def is_there(self, region: RegionSpec) -> bool:
        """See Backend: once its hypervisor has plugged the node's memory."""
        return self._num_bytes(_node(region.region_id)) >= region.num_bytes

    def _num_bytes(self, node: int) -> int:
        return len(self._blocks.of_node(node)) * self._block_bytes

    def handle(self, region_id: RegionId) -> Handle:
        """See Backend."""
        node = _node(region_id)
        cpuset = self._cpusets.path(node) if self._cpusets is not None else None
        return NodeHandle(node=node, cpuset=cpuset if cpuset and cpuset.is_dir() else None)

    async def is_released(self, region_id: RegionId, *, timeout_s: float) -> bool:
        """See Backend."""
        act = partial(self._blocks.use, _node(region_id))
        use = await self._told(act, timeout_s, f"the use of {region_id}")
        return use.is_released

    async def users(self, region_id: RegionId) -> tuple[int, ...]:
        return await asyncio.to_thread(self._users, _node(region_id))

    def _users(self, node: int) -> tuple[int, ...]:
        joined = self._cpusets.pids(node) if self._cpusets is not None else ()
        return joined or self._blocks.users(node)

    async def resident_bytes(self, region_id: RegionId) -> int:
        return self._blocks.use(_node(region_id)).used

    async def close(self) -> None:
        """Nothing is kept open."""

    @staticmethod
    async def _told(act: Callable[[], ResultT], timeout_s: float, what: str) -> ResultT:
        try:
            return await in_time(act, timeout_s=timeout_s, what=what)
        except OSError as fault:
            raise RegionRefused(f"{what}, and the kernel refused: {fault}") from fault


def _region_id(node: int) -> RegionId:
    return RegionId(f"{_PREFIX}{node}")


def _node(region_id: RegionId) -> int:
    return int(region_id.removeprefix(_PREFIX))
