"""/proc: whether a process is still the same one, and who has a memfd mapped or open."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")

_OURS = "/memfd:anole-"
_START_FIELD = 19
"""Of /proc/<pid>/stat, counted behind the command's closing bracket: starttime, see proc(5)."""
_MAPPING = re.compile(rf"([0-9a-f]+-[0-9a-f]+) \S+ \S+ \S+ (\d+)\s+{_OURS}")


def start_ticks(pid: int, proc: Path = PROC) -> int | None:
    """When the process began, in clock ticks since boot; None where there is no such process.

    Together with the process id this names one process of this boot: an id alone is used again.
    """
    try:
        stat = (proc / str(pid) / "stat").read_text()
        return int(stat.rpartition(")")[2].split()[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return None


def is_alive(pid: int, started: int, proc: Path = PROC) -> bool:
    """Whether that very process still runs; also true of one that cannot be seen (pid 0)."""
    return pid == 0 or start_ticks(pid, proc) == started


def users_of(inode: int, proc: Path = PROC, first: int | None = None) -> tuple[int, ...]:
    """The processes that have the memfd of this inode mapped or open, as far as /proc shows them.

    first: a process that is looked at before all others, and alone if it has it.
    """
    if first is not None and _uses(first, inode, proc):
        return (first,)
    pids = sorted(int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal())
    return tuple(pid for pid in pids if _uses(pid, inode, proc))


def reopened_from(pid: int, inode: int, proc: Path = PROC) -> int | None:
    """A descriptor of the memfd of this inode that the process has open or mapped.

    None where this process may not have it: /proc/<pid>/map_files needs CAP_CHECKPOINT_RESTORE.
    """
    folder = proc / str(pid)
    paths = [folder / "fd" / name for name in _open_names(folder, inode)]
    paths += [folder / "map_files" / name for name in _mapped_ranges(folder, inode)]
    for path in paths:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if os.fstat(descriptor).st_ino == inode:
                return descriptor
            os.close(descriptor)
    return None


def _uses(pid: int, inode: int, proc: Path) -> bool:
    folder = proc / str(pid)
    if any(True for _ in _mapped_ranges(folder, inode)):
        return True
    if pid == os.getpid():
        return False  # what memd itself has open is no use of it
    return any(True for _ in _open_names(folder, inode))


def _mapped_ranges(folder: Path, inode: int) -> Iterator[str]:
    try:
        lines = (folder / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        found = _MAPPING.match(line)
        if found and int(found[2]) == inode:
            yield found[1]


def _open_names(folder: Path, inode: int) -> Iterator[str]:
    try:
        entries = list((folder / "fd").iterdir())
    except OSError:
        return
    for entry in entries:
        with suppress(OSError):
            if str(entry.readlink()).startswith(_OURS) and entry.stat().st_ino == inode:
                yield entry.name
