"""VirtioMem: regions are virtio-mem devices of a guest, each on a NUMA node of its own.

To unplug, the guest's kernel takes the region's memory blocks offline first, and only then is the
device asked to shrink. A device that shrinks memory in use zeroes every page on the way (Debian's
init_on_alloc=1), which takes ten times as long; a block that is offline is just removed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anole_memd.backend import Handle, NodeHandle, Plugged
from anole_memd.backends.guest_agent import BlockFault, GuestAgent
from anole_memd.backends.hypervisor import Device, Hypervisor
from anole_memd.backends.monitor import CommandFailed, MonitorGone
from anole_memd.backends.node_memory import ONLINE_MOVABLE, still_busy
from anole_memd.core.region import RegionSpec
from anole_memd.errors import (
    BackendError,
    BackendSilent,
    BackendUnavailable,
    PartialUnplug,
    RegionBusy,
    RegionRefused,
)
from anole_shared.ids import RegionId
from anole_shared.units import MiB

_POLL_S = 0.004
_MAX_AT_ONCE = 64
_ONLINE_TRIES, _ONLINE_PAUSE_S = 100, 0.05
_AUTO_ONLINE = "/sys/devices/system/memory/auto_online_blocks"
_NUMA_BALANCING = "/proc/sys/kernel/numa_balancing"


class VirtioMem:
    """A Backend. Without a guest agent somebody in the guest must take blocks offline itself."""

    name = "virtio-mem"

    def __init__(self, hypervisor: Hypervisor, agent: GuestAgent | None) -> None:
        self._hypervisor = hypervisor
        self._agent = agent
        self._turn = asyncio.Semaphore(1 if hypervisor.one_at_a_time else _MAX_AT_ONCE)
        self._block_bytes = 0
        self._nodes: dict[str, int] = {}
        self._slots: tuple[RegionSpec, ...] = ()

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    @property
    def slots(self) -> tuple[RegionSpec, ...]:
        return self._slots

    async def probe(self, *, timeout_s: float) -> str:
        """See Backend. Plugs and unplugs the first device that has nothing plugged."""
        name = self._hypervisor.name
        try:
            async with _within(timeout_s, f"{name} was asked for its virtio-mem devices"):
                devices = await self._hypervisor.devices()
                if not devices:
                    raise BackendUnavailable(
                        f"{name} has no virtio-mem device",
                        "start the guest with one device for each region, see memd's README",
                    )
                guest_block_bytes = await self._check_guest()
        except (BackendSilent, RegionRefused) as fault:
            raise BackendUnavailable(
                str(fault), "check the sockets' paths and the guest"
            ) from fault
        self._block_bytes = max(guest_block_bytes, *(device.block_bytes for device in devices))
        for device in devices:
            if device.max_bytes % self._block_bytes:
                raise BackendUnavailable(
                    f"{device.device_id} has {device.max_bytes} bytes, which is no multiple of the "
                    f"{self._block_bytes} that the guest can take offline",
                    "give it another size",
                )
        self._slots = tuple(
            RegionSpec(region_id=RegionId(device.device_id), num_bytes=device.max_bytes)
            for device in devices
        )
        return await self._dry_run(devices, timeout_s)

    async def _check_guest(self) -> int:
        """What offlining needs of the guest's settings; the size of its memory blocks."""
        if self._agent is None:
            return 1
        for path, wanted in ((_AUTO_ONLINE, ONLINE_MOVABLE), (_NUMA_BALANCING, "0")):
            try:
                found = (await self._agent.read(path)).strip()
            except CommandFailed:
                continue  # a kernel without it, or an agent that may not read: plug() will see
            if found != wanted:
                raise BackendUnavailable(
                    f"the guest's {path} is {found}", f"echo {wanted} > {path} in the guest"
                )
        return await self._agent.block_bytes()

    async def _dry_run(self, devices: tuple[Device, ...], timeout_s: float) -> str:
        size = f"{len(devices)} devices of {devices[0].max_bytes // MiB} MiB"
        idle = next(
            (one for one in devices if not one.size_bytes and not one.requested_bytes), None
        )
        if idle is None:
            return f"{self._hypervisor.name} has {size}; all are in use, so that none was tried"
        spec = next(spec for spec in self._slots if spec.region_id == idle.device_id)
        try:
            await self.plug(spec, timeout_s=timeout_s)
            await self.unplug(spec.region_id, timeout_s=timeout_s)
        except BackendError as fault:
            raise BackendUnavailable(
                f"plugging and unplugging {idle.device_id} failed ({fault})",
                "see whether the guest runs, has virtio_mem and onlines memory as online_movable",
            ) from fault
        return f"{self._hypervisor.name} has {size}; {idle.device_id} was plugged and unplugged"

    async def plug(self, region: RegionSpec, *, timeout_s: float) -> Plugged:
        """See Backend. What an interrupted unplug has left is unplugged first."""
        plugged = Plugged(num_bytes=region.num_bytes, token=region.region_id)
        async with _within(timeout_s, f"{region.region_id} was asked to grow") as progress:
            device = await self._device(region.region_id)
            if await self._is_whole(device):
                await self._learn_node(device)
                return plugged
            if device.size_bytes or device.requested_bytes:
                await self._resize(device, 0, _Progress())
            await self._resize(device, device.max_bytes, progress)
            try:
                await self._check_plugged(device)
            except RegionRefused:
                await self._resize(device, 0, _Progress())
                raise
        return plugged

    async def _is_whole(self, device: Device) -> bool:
        if device.size_bytes != device.max_bytes or device.requested_bytes != device.max_bytes:
            return False
        return self._agent is None or await self._are_online(device)

    async def _check_plugged(self, device: Device) -> None:
        if self._agent is not None and not await self._come_online(device):
            raise RegionRefused(
                f"the guest leaves memory of {device.device_id} offline: write {ONLINE_MOVABLE} to "
                f"{_AUTO_ONLINE} in it"
            )
        await self._learn_node(device)

    async def _learn_node(self, device: Device) -> None:
        """Which of the guest's nodes it is, once its blocks are there."""
        if self._agent is None or device.address is None:
            if device.node is not None:
                self._nodes[device.device_id] = device.node
            return
        node = await self._agent.node_of(self._blocks(device)[0])
        others = {known for name, known in self._nodes.items() if name != device.device_id}
        if node is None or node in others | {0}:
            raise RegionRefused(
                f"{device.device_id} has no NUMA node of its own in the guest (it is on {node}): "
                "give its device (or memory zone) a node, and with QEMU an acpi-generic-initiator"
            )
        self._nodes[device.device_id] = node

    async def _come_online(self, device: Device) -> bool:
        """The driver tells the device first, and the rest of its kernel then."""
        for _ in range(_ONLINE_TRIES):
            if await self._are_online(device):
                return True
            await asyncio.sleep(_ONLINE_PAUSE_S)
        return False

    async def _are_online(self, device: Device) -> bool:
        assert self._agent is not None
        return (await self._agent.online_blocks()).issuperset(self._blocks(device))

    async def unplug(self, region_id: RegionId, *, timeout_s: float, force: bool = False) -> int:  # noqa: ARG002 - a device cannot be forced
        """See Backend."""
        async with _within(timeout_s, f"{region_id} was asked to shrink") as progress:
            device = await self._device(region_id)
            if device.size_bytes and self._agent is not None:
                await self._take_offline(device)
            if device.size_bytes or device.requested_bytes:
                await self._resize(device, 0, progress)
        return device.size_bytes

    async def _take_offline(self, device: Device) -> None:
        agent = self._agent
        assert agent is not None
        node = self._nodes.get(device.device_id)
        if node is None:
            node = await agent.node_of(self._blocks(device)[0])
        if node is not None:
            use = await agent.node_use(node)
            if use.in_the_way:
                raise RegionBusy(
                    f"{use.in_the_way} bytes of {device.device_id} are in use in the guest "
                    f"(node {node}: {use.anon} of processes, {use.cached} of files and "
                    "shared memory): end their users, drop the files' pages"
                )
        blocks: Sequence[int] = self._blocks(device)
        faults: list[BlockFault] = []

        async def take_offline() -> Sequence[int]:
            nonlocal blocks, faults
            faults = await agent.offline(blocks)
            blocks = [fault.block for fault in faults]
            return blocks if all(fault.is_busy for fault in faults) else ()

        await still_busy(take_offline)
        if faults:
            error = RegionBusy if all(fault.is_busy for fault in faults) else RegionRefused
            raise error(
                f"{len(faults)} memory blocks of {device.device_id} do not go offline in the guest "
                f"({', '.join(sorted({fault.reason for fault in faults}))}, "
                f"first memory{faults[0].block})"
            )

    async def adopt(
        self, region: RegionSpec, token: str, holder: int | None, *, timeout_s: float
    ) -> Plugged | None:
        """See Backend. The device is where it was: QEMU outlives memd."""
        del token, holder
        async with _within(timeout_s, f"{region.region_id} was asked for its size"):
            device = await self._device(region.region_id)
            if not device.size_bytes and not device.requested_bytes:
                return None
            if await self._is_whole(device):
                await self._learn_node(device)
                return Plugged(num_bytes=device.max_bytes, token=region.region_id)
        raise PartialUnplug(
            f"{region.region_id} has {device.size_bytes} of {device.max_bytes} bytes plugged (some "
            f"perhaps offline in the guest) and is asked for {device.requested_bytes}",
            num_bytes=0,
            left_bytes=device.size_bytes,
        )

    def is_there(self, region: RegionSpec) -> bool:  # noqa: ARG002 - memd itself has it plugged
        return True

    def handle(self, region_id: RegionId) -> Handle:
        """See Backend: the guest's node."""
        node = self._nodes.get(region_id)
        if node is None:
            raise RegionRefused(
                f"{region_id} has no NUMA node of its own in the guest, as far as is known: what "
                "runs there cannot be bound to it"
            )
        return NodeHandle(node=node)

    async def is_released(self, region_id: RegionId, *, timeout_s: float) -> bool:
        """See Backend. Without an agent the guest is taken at its holder's word."""
        node = self._nodes.get(region_id)
        if self._agent is None or node is None:
            return True
        async with _within(timeout_s, "the guest's agent was asked who uses a node"):
            use = await self._agent.node_use(node)
        return use.is_released

    async def users(self, region_id: RegionId) -> tuple[int, ...]:  # noqa: ARG002 - they are the guest's
        return ()

    async def resident_bytes(self, region_id: RegionId) -> int:
        """See Backend: what the guest has in use of it."""
        node = self._nodes.get(region_id)
        if self._agent is None or node is None:
            return 0
        try:
            return (await self._agent.node_use(node)).used
        except BackendError:
            return 0

    async def close(self) -> None:
        await self._hypervisor.close()
        if self._agent is not None:
            await self._agent.close()

    async def _device(self, region_id: str) -> Device:
        for device in await self._hypervisor.devices():
            if device.device_id == region_id:
                return device
        raise RegionRefused(f"{self._hypervisor.name} has no virtio-mem device {region_id}")

    def _blocks(self, device: Device) -> range:
        assert device.address is not None
        first = device.address // self._block_bytes
        return range(first, first + device.max_bytes // self._block_bytes)

    async def _resize(self, device: Device, target: int, progress: "_Progress") -> None:
        """Until the guest has plugged just so much."""
        async with self._turn:
            await self._resize_now(device, target, progress)

    async def _resize_now(self, device: Device, target: int, progress: "_Progress") -> None:
        now = await self._device(device.device_id)
        progress.start = progress.size = now.size_bytes
        if now.requested_bytes == target and now.size_bytes != target:
            # The driver sleeps up to 300 s after a failure; another request wakes it, the same not.
            await self._hypervisor.request(device.device_id, now.size_bytes)
        await self._hypervisor.request(device.device_id, target)
        while progress.size != target:
            progress.size = (await self._device(device.device_id)).size_bytes
            if progress.size != target:
                await asyncio.sleep(_POLL_S)
        progress.start = progress.size


@dataclass(slots=True)
class _Progress:
    """How far a device has come, for who must say so when the time is over."""

    start: int = 0
    size: int = 0


@asynccontextmanager
async def _within(timeout_s: float, what: str) -> AsyncIterator[_Progress]:
    progress = _Progress()
    try:
        async with asyncio.timeout(timeout_s):
            yield progress
    except TimeoutError as fault:
        came_back = progress.start - progress.size
        if came_back > 0:
            raise PartialUnplug(
                f"{what}: {came_back} bytes came back within {timeout_s:g} s, {progress.size} "
                "are still plugged; the guest uses them or is slow",
                num_bytes=came_back,
                left_bytes=progress.size,
            ) from fault
        raise BackendSilent(f"{what} and has not answered within {timeout_s:g} s") from fault
    except MonitorGone as fault:
        raise BackendSilent(str(fault)) from fault
    except CommandFailed as fault:
        raise RegionRefused(str(fault)) from fault
