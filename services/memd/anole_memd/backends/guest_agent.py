"""GuestAgent: memory blocks and files of a guest, through the QEMU guest agent that runs in it.

The guest needs nothing of ours: qemu-guest-agent is in every distribution. memd talks to it over
the unix socket of its virtio-serial port. See docs/interop/qemu-ga-ref of QEMU: guest-get-memory-
block-info, guest-get-memory-blocks, guest-set-memory-blocks, guest-file-open, -read and -close.
"""

import asyncio
import base64
import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anole_memd.backends.monitor import CommandFailed, Monitor
from anole_memd.backends.node_memory import STAT_REFRESH, NodeUse, id_list, node_use

_MAX_READ_BYTES = 65536
_FINE = ("success", "not-found")
_SYSTEM = "/sys/devices/system"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFault:
    """A memory block that the guest's kernel did not change, and its reason."""

    block: int
    reason: str
    is_busy: bool
    """EBUSY: trying again can help."""


class GuestAgent:
    """One guest. Every coroutine may raise MonitorGone, and CommandFailed where it says no more."""

    def __init__(self, socket: Path) -> None:
        self._monitor = Monitor(socket, "the guest's agent", greets=False)

    async def block_bytes(self) -> int:
        """The size of a memory block of the guest's kernel."""
        return int((await self._monitor.ask("guest-get-memory-block-info"))["size"])

    async def online_blocks(self) -> frozenset[int]:
        """The numbers of all blocks that are in use by the guest's kernel."""
        blocks = await self._monitor.ask("guest-get-memory-blocks")
        return frozenset(block["phys-index"] for block in blocks if block["online"])

    async def offline(self, blocks: Iterable[int]) -> list[BlockFault]:
        """Take the blocks out of the guest's use, where they are; those that stay, and why."""
        wanted: list[dict[str, Any]] = [{"phys-index": block, "online": False} for block in blocks]
        answers = await self._monitor.ask("guest-set-memory-blocks", {"mem-blks": wanted})
        return [_fault(answer) for answer in answers if answer["response"] not in _FINE]

    async def node_use(self, node: int) -> NodeUse:
        """Who uses the memory of this node of the guest."""
        path = f"{_SYSTEM}/node/node{node}/meminfo"
        use = node_use(await self.read(path))
        if use.anon or use.cached:
            # Perhaps not any more: each processor counts for itself, and adds it up now and then.
            await self.read(f"/{STAT_REFRESH}")
            use = node_use(await self.read(path))
        return use

    async def node_of(self, block: int) -> int | None:
        """The guest's node that this block belongs to; None where the block is not there.

        Not what the hypervisor calls it: Linux numbers nodes in the order of the firmware's tables.
        """
        for node in id_list(await self.read(f"{_SYSTEM}/node/possible")):
            try:
                await self.read(f"{_SYSTEM}/node/node{node}/memory{block}/state")
            except CommandFailed:
                continue
            return node
        return None

    async def read(self, path: str) -> str:
        """The beginning of a file of the guest's.

        Raises:
            CommandFailed: there is none, or the agent may not read files.
        """
        handle = await self._monitor.ask("guest-file-open", {"path": path, "mode": "r"})
        # It does one thing after the other, so both can be asked for at once.
        answer, _ = await asyncio.gather(
            self._monitor.ask("guest-file-read", {"handle": handle, "count": _MAX_READ_BYTES}),
            self._monitor.ask("guest-file-close", {"handle": handle}),
        )
        return base64.b64decode(answer["buf-b64"]).decode(errors="replace")

    async def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """Any other command of the agent's."""
        return await self._monitor.ask(command, arguments)

    async def close(self) -> None:
        await self._monitor.close()


def _fault(answer: dict[str, Any]) -> BlockFault:
    code = answer.get("error-code", 0)
    reason = errno.errorcode.get(code, str(answer["response"]))
    return BlockFault(
        block=answer["phys-index"], reason=reason, is_busy=code in {errno.EBUSY, errno.EAGAIN}
    )
