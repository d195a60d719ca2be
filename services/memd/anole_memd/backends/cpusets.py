"""Cpusets: a control group for each region's node, whose processes get memory nowhere else.

Control groups v2, see Documentation/admin-guide/cgroup-v2.rst of Linux. A process should be started
in its group (CLONE_INTO_CGROUP) or join before it has memory: the kernel moves what it has.
"""

from contextlib import suppress
from pathlib import Path


class Cpusets:
    """Groups below a parent that has cpuset and memory among its controllers."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    def make(self, node: int) -> Path:
        """The node's group, made where it is missing.

        Raises:
            OSError: the parent is no group of ours, or lacks the cpuset controller.
        """
        wanted = set((self._parent / "cgroup.controllers").read_text().split())
        enabled = wanted & {"cpuset", "memory"}
        (self._parent / "cgroup.subtree_control").write_text(
            " ".join(f"+{controller}" for controller in sorted(enabled))
        )
        group = self.path(node)
        group.mkdir(exist_ok=True)
        (group / "cpuset.mems").write_text(str(node))
        return group

    def path(self, node: int) -> Path:
        return self._parent / f"node{node}"

    def pids(self, node: int) -> tuple[int, ...]:
        """Who is in the group."""
        with suppress(OSError):
            return tuple(map(int, (self.path(node) / "cgroup.procs").read_text().split()))
        return ()

    def drop_files(self, node: int, num_bytes: int) -> None:
        """Have the kernel forget pages of files that the group's processes have read.

        They stay on the node after the processes have ended, and would be copied to another one.
        """
        # It says EAGAIN where less than that could be reclaimed.
        with suppress(OSError):
            (self.path(node) / "memory.reclaim").write_text(f"{num_bytes} swappiness=0")
            return
        with suppress(OSError):  # before Linux 6.7 there is no swappiness here
            (self.path(node) / "memory.reclaim").write_text(str(num_bytes))
