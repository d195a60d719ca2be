"""Backend: what memd needs of a kernel or hypervisor that has regions of memory.

One module in anole_memd.backends implements it for each interface. A backend keeps no books: which
region is leased to whom is the ledger's. It keeps what it needs to reach its regions, and can find
that again after memd was killed.

Every coroutine takes timeout_s and ends within it (a little more where a thread must be left
behind), with one of the errors named here. None is called twice at once for the same region; calls
for different regions may overlap.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anole_memd.core.region import RegionSpec
from anole_shared.ids import RegionId


@dataclass(frozen=True, slots=True, kw_only=True)
class MemfdHandle:
    """The region is a file: whoever holds it maps this descriptor."""

    descriptor: int
    """Made for this holder alone: whoever asked for the handle closes it once it is passed on."""

    def close(self) -> None:
        """Let go of this process's copy."""
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHandle:
    """The region is a NUMA node: whoever holds it binds its memory to that node."""

    node: int
    """For mbind(2), set_mempolicy(2) and a cgroup's cpuset.mems."""
    cpuset: Path | None = None
    """A cgroup v2 directory with that cpuset.mems, to join by cgroup.procs; None where the holder
    must bind itself."""

    def close(self) -> None:
        """There is nothing to let go of."""


Handle = MemfdHandle | NodeHandle


@dataclass(frozen=True, slots=True, kw_only=True)
class Plugged:
    """A region that has memory now."""

    num_bytes: int
    """At least as much as was asked for."""
    token: str
    """Whatever the backend needs to find the region again after memd was killed: a short line of
    its own, which memd keeps in its journal. Never parsed by anybody else."""


class Backend(Protocol):
    """Plugs and unplugs regions."""

    @property
    def name(self) -> str:
        """What --backend calls it."""
        ...

    @property
    def block_bytes(self) -> int:
        """A region's size is a multiple of this; known once probe() has returned."""
        ...

    @property
    def slots(self) -> tuple[RegionSpec, ...] | None:
        """The regions that there can be, each of its fixed size; known once probe() has returned.

        None where a region of any size is made when asked for.
        """
        ...

    async def probe(self, *, timeout_s: float) -> str:
        """Prove by a dry run that regions can be had here; one sentence on what was found.

        It leaves nothing plugged that was not plugged before, and touches no region of an earlier
        memd.

        Raises:
            BackendUnavailable: they cannot, why, and what to do about it.
        """
        ...

    async def plug(self, region: RegionSpec, *, timeout_s: float) -> Plugged:
        """Give the region its memory. Of a region that is plugged already: says so again.

        Raises:
            RegionRefused: the kernel or the hypervisor gave none; nothing is plugged.
            BackendSilent: no answer within timeout_s; adopt() tells what has become of it.
        """
        ...

    async def unplug(self, region_id: RegionId, *, timeout_s: float, force: bool = False) -> int:
        """Take the region's memory away; how many bytes came back. 0 where it has none.

        It moves no page: it fails where a page is in use. force: take it away from whoever uses it,
        where the backend can (pages of a memfd), else as if it were not set.

        Raises:
            RegionBusy: pages are in use; nothing has changed that plug() would not mend.
            PartialUnplug: some bytes came back; another call goes on from there.
            BackendSilent: no answer within timeout_s; another call goes on from there.
            RegionRefused: it was refused for another reason.
        """
        ...

    async def adopt(
        self, region: RegionSpec, token: str, holder: int | None, *, timeout_s: float
    ) -> Plugged | None:
        """Find a region again that an earlier memd plugged (or was about to); None: it has none.

        Args:
            region: as it was given to plug().
            token: what plug() returned; empty where memd was killed before it did.
            holder: the process that has the lease, if it lives; its region is in use.
            timeout_s: as for the others.

        Raises:
            BackendSilent: no answer within timeout_s.
            PartialUnplug: an unplug was under way and some of it is still there.
        """
        ...

    def is_there(self, region: RegionSpec) -> bool:
        """Whether this slot can be plugged: not while somebody else has yet to give it memory."""
        ...

    def handle(self, region_id: RegionId) -> Handle:
        """What a holder needs to use a plugged region.

        Raises:
            RegionRefused: there is none to give, because the region was adopted without it.
        """
        ...

    async def is_released(self, region_id: RegionId, *, timeout_s: float) -> bool:
        """Whether no process uses memory of the plugged region any more.

        Raises:
            BackendSilent: no answer within timeout_s.
        """
        ...

    async def users(self, region_id: RegionId) -> tuple[int, ...]:
        """Processes that are seen to use the region, for people to read: none may be seen."""
        ...

    async def resident_bytes(self, region_id: RegionId) -> int:
        """How much memory the region's pages take now; 0 where that cannot be told."""
        ...

    async def close(self) -> None:
        """Let go of connections and descriptors; what is plugged stays plugged as far as it can."""
        ...
