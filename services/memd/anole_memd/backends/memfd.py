"""Regions as memfds: anonymous shared memory that is gone with its last holder.

The default backend; it needs no privilege. A region is given back by closing it: nothing has to be
found, moved or zeroed.
"""

import asyncio
import ctypes
import errno
import fcntl
import logging
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from anole_memd.backend import MemfdHandle, Plugged
from anole_memd.backends import huge_pages, processes
from anole_memd.core.region import RegionSpec
from anole_memd.errors import BackendUnavailable, RegionBusy, RegionRefused
from anole_shared.ids import RegionId
from anole_shared.units import PAGE_BYTES, MiB

log = logging.getLogger(__name__)

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SECTOR_BYTES = 512  # of st_blocks, see stat(2)
_FEW_BYTES = MiB
"""Freed sooner than a thread would be asked to: some 0.1 ms."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2


def create(name: str, num_bytes: int) -> int:
    """The descriptor of a new region: empty pages, taken from the kernel when first written.

    It is sealed against any change of size, so that no holder can take pages away from under
    another's mapping (which would end that process with SIGBUS) or grow the region over its lease.

    The descriptor is opened once more by path: unlike memfd_create(2)'s own it is counted among
    those that may write, which is what lets is_held() tell others from ourselves.

    Args:
        name: what /proc/<pid>/maps and fd call it, behind "memfd:anole-".
        num_bytes: whole pages.

    Raises:
        OSError: too many open files, or no memory for the kernel's own records.
    """
    made = os.memfd_create(f"anole-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(made, num_bytes)
        fcntl.fcntl(made, fcntl.F_ADD_SEALS, _SEALS)
        return reopened(made)
    finally:
        os.close(made)


def reopened(descriptor: int) -> int:
    """Another opening of the same region, counted apart from this one; the caller closes it."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)


def is_held(descriptor: int) -> bool:
    """Whether anybody holds the region besides this descriptor: open, mapped, or in flight.

    A write lease (fcntl(2), F_SETLEASE) can only be had on a file that nobody else has open for
    writing, and a mapping counts as that; so the kernel answers at once for all processes, also
    those that this one may not look at.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as fault:
        if fault.errno != errno.EAGAIN:
            raise
        return True
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as it may have at all; returns how many.

    memd keeps one descriptor a lease, and the soft limit is 1024 on most systems.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class MemfdBackend:
    """One memfd a region, of whatever size is asked for.

    After memd was killed, its holders still have their regions. adopt() finds such a region among
    the mappings of its holder by inode, and its descriptor too where the kernel lets this process
    have it; without that, whoever has it mapped is looked for in /proc.
    """

    name = "memfd"
    block_bytes = PAGE_BYTES
    slots: tuple[RegionSpec, ...] | None = None

    def __init__(self, proc: Path = processes.PROC) -> None:
        self._proc = proc
        self._regions: dict[RegionId, _Memfd] = {}

    async def probe(self, *, timeout_s: float) -> str:
        """Make a region, write to it, see that its holders are counted; see Backend."""
        del timeout_s  # nothing here waits
        try:
            descriptor = create("probe", PAGE_BYTES)
            try:
                os.pwrite(descriptor, b"probe", 0)
                _check_that_holders_count(descriptor)
            finally:
                os.close(descriptor)
        except OSError as fault:
            raise BackendUnavailable(
                f"this kernel makes no sealed memfd whose holders can be told ({fault})",
                "use Linux 5.10 or later with /proc mounted, and start memd as the user who owns "
                "its files",
            ) from fault
        if not huge_pages.are_given():
            log.warning(
                "this kernel backs regions with pages of 4 KiB, which are filled and given back "
                "several times slower: echo advise > %s/shmem_enabled",
                huge_pages.SYSFS,
            )
        return "sealed memfds can be made, and whether anybody holds one can be told"

    async def plug(self, region: RegionSpec, *, timeout_s: float) -> Plugged:
        """Make the memfd; its pages come when they are written. See Backend."""
        del timeout_s
        found = self._regions.get(region.region_id)
        if found is None:
            try:
                descriptor = create(region.name, region.num_bytes)
            except OSError as fault:
                raise RegionRefused(f"the kernel gave memd no region: {fault}") from fault
            inode = os.fstat(descriptor).st_ino
            found = _Memfd(descriptor=descriptor, inode=inode, num_bytes=region.num_bytes)
            self._regions[region.region_id] = found
        return Plugged(num_bytes=found.num_bytes, token=str(found.inode))

    async def unplug(self, region_id: RegionId, *, timeout_s: float, force: bool = False) -> int:
        """Close it. force: take its pages away first, if others hold it. See Backend.

        Whoever has a forced region mapped still reads zeros there, and takes memory again if it
        writes.
        """
        found = self._regions.get(region_id)
        if found is None:
            return 0
        if not await self.is_released(region_id, timeout_s=timeout_s):
            if not force or found.descriptor is None:
                who = ", ".join(map(str, await self.users(region_id))) or "unknown"
                raise RegionBusy(f"it is still mapped or open; seen in processes: {who}")
            await asyncio.to_thread(_punch, found.descriptor, found.num_bytes)
        del self._regions[region_id]
        if found.descriptor is not None:
            await _let_go(found.descriptor)
        return found.num_bytes

    async def adopt(
        self, region: RegionSpec, token: str, holder: int | None, *, timeout_s: float
    ) -> Plugged | None:
        """Find the memfd among what processes have mapped and open; see Backend."""
        del timeout_s
        if not token.isdecimal():
            return None  # memd was killed before anybody could be given it
        inode = int(token)
        pids = await asyncio.to_thread(processes.users_of, inode, self._proc, holder)
        if not pids:
            return None
        descriptor = processes.reopened_from(pids[0], inode, self._proc)
        self._regions[region.region_id] = _Memfd(
            descriptor=descriptor, inode=inode, num_bytes=region.num_bytes
        )
        return Plugged(num_bytes=region.num_bytes, token=token)

    def is_there(self, region: RegionSpec) -> bool:  # noqa: ARG002 - none is there before plug()
        return True

    def handle(self, region_id: RegionId) -> MemfdHandle:
        """Another opening of the memfd, which the caller closes; see Backend."""
        found = self._regions.get(region_id)
        if found is None or found.descriptor is None:
            raise RegionRefused(f"{region_id} has no descriptor: its memd was killed; lease anew")
        try:
            return MemfdHandle(descriptor=reopened(found.descriptor))
        except OSError as fault:
            raise RegionRefused(f"{region_id} cannot be opened once more: {fault}") from fault

    async def is_released(self, region_id: RegionId, *, timeout_s: float) -> bool:
        """Whether memd alone has it; see Backend."""
        del timeout_s
        found = self._regions.get(region_id)
        if found is None:
            return True
        if found.descriptor is not None:
            return not is_held(found.descriptor)
        # All of /proc, once a second for as long as the region is leased.
        return not await asyncio.to_thread(processes.users_of, found.inode, self._proc)

    async def users(self, region_id: RegionId) -> tuple[int, ...]:
        """Who has it mapped or open besides memd; see Backend."""
        found = self._regions.get(region_id)
        return processes.users_of(found.inode, self._proc) if found else ()

    async def resident_bytes(self, region_id: RegionId) -> int:
        """What its pages take; see Backend."""
        found = self._regions.get(region_id)
        if found is None or found.descriptor is None:
            return 0
        return os.fstat(found.descriptor).st_blocks * _SECTOR_BYTES

    async def close(self) -> None:
        """Close every descriptor: a region without a holder is gone then, the others stay."""
        for found in self._regions.values():
            if found.descriptor is not None:
                os.close(found.descriptor)
        self._regions.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memfd:
    descriptor: int | None
    """None where it was adopted without."""
    inode: int
    num_bytes: int


def _check_that_holders_count(descriptor: int) -> None:
    other = reopened(descriptor)
    try:
        is_seen = is_held(descriptor)
    finally:
        os.close(other)
    if not is_seen or is_held(descriptor):
        raise OSError(errno.ENOTSUP, "write leases do not tell")


async def _let_go(descriptor: int) -> None:
    """Close it; the kernel frees its pages before it returns: in a thread, where there are many.

    Embedded, the event loop is also that of every stream.
    """
    resident_bytes = os.fstat(descriptor).st_blocks * _SECTOR_BYTES
    if resident_bytes <= _FEW_BYTES:
        os.close(descriptor)
    else:
        await asyncio.to_thread(os.close, descriptor)


def _punch(descriptor: int, num_bytes: int) -> None:
    """Take all pages of the region away, from every mapping of it (fallocate(2))."""
    how = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE)
    if _LIBC.fallocate(descriptor, how, ctypes.c_long(0), ctypes.c_long(num_bytes)):
        number = ctypes.get_errno()
        raise RegionRefused(f"its pages cannot be taken away: {os.strerror(number)}")
