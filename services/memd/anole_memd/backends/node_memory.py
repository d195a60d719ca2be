"""A NUMA node's memory, whoever reaches it: what the kernel says of it, and taking it offline."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from anole_shared.units import KiB, MiB

ONLINE_MOVABLE = "online_movable"
"""What auto_online_blocks must be: memory of ZONE_MOVABLE alone can be counted on to go offline."""
OFFLINE_ATTEMPTS, _OFFLINE_PAUSE_S = 3, 0.1
"""How often a busy block is tried, and what lies between: pages are in use for moments, too."""
STAT_REFRESH = "proc/sys/vm/stat_refresh"
"""Reading it adds up what each processor has counted for itself, up to a second ago."""
LEFTOVER_BYTES = MiB
"""A few pages of files (the holder's log in a tmpfs, say) may be left on its node: the kernel moves
them when the node goes offline, in no time. Memory of a process is never left there."""

_FIELD = re.compile(r"^Node \d+ (\w+(?:\(\w+\))?):\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUse:
    """Who uses a node's pages, in bytes."""

    total: int
    used: int
    anon: int
    """Of processes, or kept in swap's cache."""
    shared: int
    """tmpfs, memfd and shared anonymous memory."""
    mapped: int
    """Pages of files that some process maps."""
    cached: int
    """Pages of files, shared memory included; they outlive whoever read them."""

    @property
    def is_released(self) -> bool:
        """Whether no process has memory here any more, but for some leftovers."""
        return not self.anon and max(self.shared, self.mapped) <= LEFTOVER_BYTES

    @property
    def in_the_way(self) -> int:
        """Bytes that must go first; 0 where nothing, or only leftovers, would have to move."""
        return self.anon + (self.cached if self.cached > LEFTOVER_BYTES else 0)


async def still_busy(take_offline: Callable[[], Awaitable[Sequence[int]]]) -> Sequence[int]:
    """Try a few times.

    Args:
        take_offline: takes a region's blocks that are online offline; those that are busy.

    Returns:
        The blocks that were busy the last time, too.
    """
    busy = await take_offline()
    for _ in range(OFFLINE_ATTEMPTS - 1):
        if not busy:
            break
        await asyncio.sleep(_OFFLINE_PAUSE_S)
        busy = await take_offline()
    return busy


def node_use(meminfo: str) -> NodeUse:
    """Parse /sys/devices/system/node/nodeN/meminfo; all zeroes where it says nothing."""
    fields = {name: int(kib) * KiB for name, kib in _FIELD.findall(meminfo)}
    return NodeUse(
        total=fields.get("MemTotal", 0),
        used=fields.get("MemUsed", 0),
        anon=fields.get("AnonPages", 0),
        shared=fields.get("Shmem", 0),
        mapped=fields.get("Mapped", 0),
        cached=fields.get("FilePages", 0),
    )


def id_list(text: str) -> tuple[int, ...]:
    """The numbers of the kernel's list format, e.g. "0-3,5"; see cpuset(7)."""
    ids: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return tuple(ids)
