"""A control group of version 2 that confines one program's memory.

Documentation/admin-guide/cgroup-v2.rst of Linux. Over its limit the kernel kills all processes of
the group at once (memory.oom.group) and swaps none of it out, so it never takes memory of others.
Clean page cache is charged to the group that first reads a file, but is dropped before anything is
killed; what others have read before is charged to them.
"""

import errno
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from anole_memd.backends import processes
from anole_memd.errors import SandboxUnavailable

ROOT = Path("/sys/fs/cgroup")

_PARENT = "anole"
_OWNER = re.compile(r"(\d+)-(\d+)-")
"""Its process id and when it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a group has used and suffered."""

    current_bytes: int
    peak_bytes: int
    """0 where this kernel does not tell (before Linux 5.19)."""
    num_killed: int
    """Processes that were killed for going over the limit."""


def parent(root: Path = ROOT, folder: Path | None = None) -> Path:
    """The group in which sandboxes' groups are made, with the memory controller on.

    Args:
        root: where cgroup v2 is mounted.
        folder: a group that is delegated to this user, with no process in it; None: one of our own
            below the root.

    Raises:
        SandboxUnavailable: this host has no such thing, or this user may not make it.
    """
    controllers = _words(root / "cgroup.controllers")
    if controllers is None:
        raise SandboxUnavailable(
            f"{root} is no cgroup v2: boot with systemd.unified_cgroup_hierarchy=1 (the kernel "
            "command line)"
        )
    if "memory" not in controllers:
        raise SandboxUnavailable(
            f"{root} has no memory controller: it is off, or taken by cgroup v1; boot with "
            "cgroup_no_v1=all"
        )
    made = folder or root / _PARENT
    try:
        if folder is None:
            _enable(root, controllers)
            made.mkdir(exist_ok=True)
        _enable(made, _words(made / "cgroup.controllers") or set())
    except OSError as fault:
        raise SandboxUnavailable(
            f"no control group can be made in {made} ({fault.strerror}): run as root, or give "
            "--cgroup a directory that is delegated to this user and has no process in it "
            "(systemd-run --user --scope -p Delegate=yes ...)"
        ) from fault
    return made


def _enable(group: Path, controllers: set[str]) -> None:
    """Let the children of a group use memory."""
    enabled = _words(group / "cgroup.subtree_control") or set()
    if "memory" in controllers - enabled:
        (group / "cgroup.subtree_control").write_text("+memory")


def _words(path: Path) -> set[str] | None:
    try:
        return set(path.read_text().split())
    except OSError:
        return None


def name_of(what: str, proc: Path = processes.PROC) -> str:
    """What this process calls a group of its own, so that sweep() can tell whose it is."""
    pid = os.getpid()
    return f"{pid}-{processes.start_ticks(pid, proc)}-{what}"


def sweep(within: Path, proc: Path = processes.PROC) -> None:
    """Kill and remove groups whose supervisor was killed: their names tell which process it was."""
    for group in within.iterdir():
        owner = _OWNER.match(group.name)
        if not group.is_dir() or owner is None:
            continue
        if processes.is_alive(int(owner[1]), int(owner[2]), proc):
            continue
        with suppress(OSError):
            left = MemoryCgroup.found(group)
            left.kill()
            left.remove()


class MemoryCgroup:
    """One sandbox's group, made empty."""

    def __init__(self, within: Path, name: str, limit_bytes: int) -> None:
        """Make it.

        Raises:
            SandboxUnavailable: the kernel refuses.
        """
        self.path = within / name
        try:
            self.path.mkdir()
            try:
                self.limit(limit_bytes)
            except OSError:
                self.path.rmdir()
                raise
        except OSError as fault:
            raise SandboxUnavailable(
                f"no control group {self.path} can be made ({fault.strerror}): see what is in "
                f"{within}/cgroup.controllers and who may write there"
            ) from fault

    @classmethod
    def found(cls, path: Path) -> Self:
        """One that is there already."""
        group = cls.__new__(cls)
        group.path = path
        return group

    def limit(self, limit_bytes: int) -> None:
        """Write its limits; raises OSError."""
        (self.path / "memory.max").write_text(str(limit_bytes))
        (self.path / "memory.oom.group").write_text("1")
        swap = self.path / "memory.swap.max"  # absent where the kernel has no swap
        if swap.exists():
            swap.write_text("0")

    def join(self) -> None:
        """Move this process in: between fork and exec of the program."""
        (self.path / "cgroup.procs").write_text("0")

    def usage(self) -> Usage:
        """What it has used so far."""
        return Usage(
            current_bytes=_number(self.path / "memory.current"),
            peak_bytes=_number(self.path / "memory.peak"),
            num_killed=_event(self.path / "memory.events", "oom_kill"),
        )

    def kill(self) -> None:
        """Kill everything in it (cgroup.kill, Linux 5.14), or one process after the other."""
        kill = self.path / "cgroup.kill"
        if kill.exists():
            kill.write_text("1")
            return
        for pid in (self.path / "cgroup.procs").read_text().split():
            try:
                os.kill(int(pid), 9)
            except ProcessLookupError:
                continue

    def remove(self) -> bool:
        """Remove it, with the page cache that is left charged to it; False while it has processes.

        Its page cache is dropped first (memory.reclaim, Linux 5.19): else those pages would stay
        charged to the group above until the kernel needs them.
        """
        try:
            current = _number(self.path / "memory.current")
            if current:
                (self.path / "memory.reclaim").write_text(str(current))
        except OSError:
            pass  # an older kernel, or not all of it could be dropped
        try:
            self.path.rmdir()
        except OSError as fault:
            if fault.errno == errno.EBUSY:
                return False
            raise
        return True


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _event(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
