"""MemoryBlocks: this kernel's memory blocks and NUMA nodes, read and changed through sysfs.

See Documentation/admin-guide/mm/memory-hotplug.rst of Linux. Everything here blocks; offlining may
do so for long where pages are in use.
"""

from pathlib import Path

from anole_memd.backends.node_memory import STAT_REFRESH, NodeUse, id_list, node_use

MOVABLE = "Movable"


class MemoryBlocks:
    """sysfs and /proc under a root, so that tests can have a tree of their own."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.memory = root / "sys/devices/system/memory"
        self.nodes = root / "sys/devices/system/node"

    def block_bytes(self) -> int:
        """The size of every block.

        Raises:
            OSError: this kernel has no memory hotplug.
        """
        return int((self.memory / "block_size_bytes").read_text(), 16)

    def memory_only_nodes(self) -> tuple[int, ...]:
        """Nodes that there can be and that have no processor."""
        with_processors = id_list(_read(self.nodes / "has_cpu"))
        return tuple(
            node for node in id_list(_read(self.nodes / "possible")) if node not in with_processors
        )

    def of_node(self, node: int) -> tuple[int, ...]:
        """The node's blocks that are there, online or not."""
        links = (self.nodes / f"node{node}").glob("memory[0-9]*")
        return tuple(sorted(int(link.name.removeprefix("memory")) for link in links))

    def is_online(self, block: int) -> bool:
        """Whether the kernel uses it (a block that is gone is not online)."""
        return _read(self._block(block) / "state") == "online"

    def zone(self, block: int) -> str:
        """The zone that an online block belongs to, e.g. Movable or Normal."""
        return _read(self._block(block) / "valid_zones").split(" ")[0]

    def set_state(self, block: int, state: str) -> None:
        """Write offline or online_movable.

        Raises:
            OSError: EBUSY where pages stay in use; EINVAL where the zone forbids it.
        """
        (self._block(block) / "state").write_text(state)

    def use(self, node: int) -> NodeUse:
        """Who uses the node's memory."""
        _read(self._root / STAT_REFRESH)
        return node_use(_read(self.nodes / f"node{node}" / "meminfo"))

    def auto_online(self) -> str:
        """What becomes of new blocks: offline, online, online_kernel or online_movable."""
        return _read(self.memory / "auto_online_blocks")

    def numa_balancing(self) -> str:
        """Whether the kernel moves pages between nodes by itself; empty where it never can."""
        return _read(self._root / "proc/sys/kernel/numa_balancing")

    def users(self, node: int) -> tuple[int, ...]:
        """Processes with pages on the node, as far as this one may look."""
        marked = f" N{node}="
        found = (
            int(path.parent.name)
            for path in (self._root / "proc").glob("[0-9]*/numa_maps")
            if marked in _read(path)
        )
        return tuple(sorted(found))

    def _block(self, block: int) -> Path:
        return self.memory / f"memory{block}"


def _read(path: Path) -> str:
    """The file without the space around; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
