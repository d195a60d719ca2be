"""A kernel's memory blocks as files in a folder, with the faults of a kernel."""

import errno
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from anole_memd.backends.memory_blocks import MemoryBlocks
from anole_shared.units import MiB

BLOCK_BYTES = 128 * MiB


class FakeBlocks(MemoryBlocks):
    """A tree with these nodes; what is written to `state` does what the kernel would do."""

    def __init__(self, root: Path, nodes: Mapping[int, tuple[int, ...]]) -> None:
        super().__init__(root)
        self.root = root
        self.faults: Callable[[int, str], int] = lambda _block, _state: 0
        """An errno for a change of a block, 0 for none."""
        self.hangs = threading.Event()
        self.hangs.set()
        self.changes: list[tuple[int, str]] = []
        self.put("sys/devices/system/memory/block_size_bytes", f"{BLOCK_BYTES:x}\n")
        self.put("sys/devices/system/memory/auto_online_blocks", "online_movable\n")
        self.put("sys/devices/system/node/has_cpu", "0\n")
        self.put("sys/devices/system/node/possible", f"0-{max(nodes)}\n")
        self.put("proc/sys/kernel/numa_balancing", "0\n")
        for node, blocks in nodes.items():
            self.use_node(node)
            for block in blocks:
                self.add_block(node, block)

    def put(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def add_block(self, node: int, block: int, state: str = "offline") -> None:
        self.put(f"sys/devices/system/memory/memory{block}/state", f"{state}\n")
        zones = "Movable" if state == "online" else "Normal Movable"
        self.put(f"sys/devices/system/memory/memory{block}/valid_zones", f"{zones}\n")
        link = self.nodes / f"node{node}" / f"memory{block}"
        link.symlink_to(self.memory / f"memory{block}")

    def use_node(
        self, node: int, *, anon_kib: int = 0, file_kib: int = 0, shmem_kib: int = 0
    ) -> None:
        self.put(
            f"sys/devices/system/node/node{node}/meminfo",
            f"Node {node} MemTotal:       262144 kB\n"
            f"Node {node} MemUsed:        {anon_kib + file_kib + 100} kB\n"
            f"Node {node} Active(anon):   {anon_kib} kB\n"
            f"Node {node} FilePages:      {file_kib} kB\n"
            f"Node {node} Mapped:         0 kB\n"
            f"Node {node} AnonPages:      {anon_kib} kB\n"
            f"Node {node} Shmem:          {shmem_kib} kB\n"
            f"Node {node} HugePages_Total:     0\n",
        )

    def states(self, node: int) -> list[bool]:
        return [self.is_online(block) for block in self.of_node(node)]

    def set_state(self, block: int, state: str) -> None:
        self.hangs.wait(10)
        self.changes.append((block, state))
        if code := self.faults(block, state):
            raise OSError(code, errno.errorcode[code])
        is_online = state != "offline"
        super().set_state(block, "online" if is_online else "offline")
        zones = self._block(block) / "valid_zones"
        zones.write_text("Movable" if is_online else "Normal Movable")
