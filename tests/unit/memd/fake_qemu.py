"""A QEMU and its guest, as far as memory goes: QMP and the guest agent's protocol, on sockets."""

import asyncio
import base64
import contextlib
import errno
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anole_shared.units import MiB

BLOCK_BYTES = 128 * MiB
FIRST_ADDRESS = 32 * BLOCK_BYTES
DEVICE_BYTES = 2 * BLOCK_BYTES
_NOT_FOUND = {"class": "GenericError", "desc": "No such file or directory"}


class Refusal(Exception):
    """An answer that is an error."""


@dataclass
class FakeDevice:
    node: int
    address: int
    requested: int = 0
    size: int = 0


@dataclass
class FakeQemu:
    """Devices vm1.. on guest nodes N.., numbered the other way round than QEMU's, as Linux may."""

    devices: dict[str, FakeDevice]
    qmp: Path
    agent: Path
    offline: set[int] = field(default_factory=set)
    anon_kib: dict[int, int] = field(default_factory=dict)
    auto_online: str = "online_movable"
    numa_balancing: str = "0"
    follows: Callable[[FakeDevice], int] = lambda device: device.requested
    """The size that the guest brings a device to."""
    busy: Callable[[int], bool] = lambda _block: False
    silent: set[str] = field(default_factory=set)
    """Commands that are never answered."""
    refused: dict[str, str] = field(default_factory=dict)
    """Commands that are answered with an error."""
    said: list[tuple[str, Any]] = field(default_factory=list)
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    def guest_node(self, device: FakeDevice) -> int:
        return len(self.devices) + 1 - device.node

    def blocks(self) -> dict[int, int]:
        """The guest's blocks that are there, with their nodes."""
        return {
            device.address // BLOCK_BYTES + number: self.guest_node(device)
            for device in self.devices.values()
            for number in range(-(-device.size // BLOCK_BYTES))
        }

    def drop_connections(self) -> None:
        for writer in self.connections:
            writer.close()
        self.connections.clear()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, greets: bool
    ) -> None:
        self.connections.append(writer)
        if greets:
            version = {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}
            self._send(writer, {"QMP": {"version": version, "capabilities": []}})
        text = ""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                text += data.decode()
                while text:  # messages follow each other without anything between them
                    try:
                        message, end = json.JSONDecoder().raw_decode(text)
                    except json.JSONDecodeError:
                        break
                    text = text[end:].lstrip()
                    self._handle(writer, message)
        writer.close()

    def _handle(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        command = message["execute"]
        if command not in self.silent:
            ids = {"id": message["id"]} if "id" in message else {}
            self._send(writer, self._answer(command, message) | ids)

    @staticmethod
    def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        writer.write(json.dumps(message).encode() + b"\r\n")

    def _answer(self, command: str, message: dict[str, Any]) -> dict[str, Any]:
        arguments = message.get("arguments") or {}
        self.said.append((command, arguments))
        if command in self.refused:
            return {"error": {"class": "GenericError", "desc": self.refused[command]}}
        try:
            handler = getattr(self, f"_{command.replace('-', '_')}")
            return {"return": handler(**{k.replace("-", "_"): v for k, v in arguments.items()})}
        except Refusal:
            return {"error": _NOT_FOUND}

    def _qmp_capabilities(self, **_: object) -> dict[str, Any]:
        return {}

    def _query_memory_devices(self) -> list[dict[str, Any]]:
        for device in self.devices.values():
            device.size = self.follows(device)
        return [
            {
                "type": "virtio-mem",
                "data": {
                    "id": name,
                    "memaddr": device.address,
                    "requested-size": device.requested,
                    "size": device.size,
                    "max-size": DEVICE_BYTES,
                    "block-size": 2 * MiB,
                    "node": device.node,
                    "memdev": f"/objects/memory-{name}",
                },
            }
            for name, device in self.devices.items()
        ] + [{"type": "dimm", "data": {"memdev": "/objects/other"}}]

    def _qom_set(self, path: str, property: str, value: int) -> dict[str, Any]:  # noqa: A002 - QMP's
        assert property == "requested-size"
        self.devices[path.removeprefix("/machine/peripheral/")].requested = value
        self.offline -= {block for block in self.offline if value}
        return {}

    def _guest_get_memory_block_info(self) -> dict[str, Any]:
        return {"size": BLOCK_BYTES}

    def _guest_get_memory_blocks(self) -> list[dict[str, Any]]:
        return [
            {"phys-index": block, "online": block not in self.offline, "can-offline": True}
            for block in self.blocks()
        ]

    def _guest_set_memory_blocks(self, mem_blks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._set_block(one["phys-index"], is_online=one["online"]) for one in mem_blks]

    def _set_block(self, block: int, *, is_online: bool) -> dict[str, Any]:
        if block not in self.blocks():
            return {"phys-index": block, "response": "not-found"}
        if self.busy(block):
            return {
                "phys-index": block,
                "response": "operation-failed",
                "error-code": errno.EBUSY,
            }
        (self.offline.discard if is_online else self.offline.add)(block)
        return {"phys-index": block, "response": "success"}

    def _guest_file_open(self, path: str, mode: str) -> int:
        assert mode == "r"
        self._reading = self._file(path)
        return 7

    def _guest_file_read(self, handle: int, count: int) -> dict[str, Any]:
        text = self._reading.encode()[:count]
        return {"count": len(text), "buf-b64": base64.b64encode(text).decode(), "eof": True}

    def _guest_file_close(self, handle: int) -> dict[str, Any]:
        return {}

    def _file(self, path: str) -> str:
        parts = path.split("/")
        match parts[-1]:
            case "auto_online_blocks":
                return f"{self.auto_online}\n"
            case "numa_balancing":
                return f"{self.numa_balancing}\n"
            case "possible":
                return f"0-{len(self.devices)}\n"
            case "stat_refresh":
                return ""
            case "meminfo":
                node = int(parts[-2].removeprefix("node"))
                return f"Node {node} AnonPages: {self.anon_kib.get(node, 0)} kB\n"
            case _:
                return self._state(*parts[-3:])

    def _state(self, node: str, block: str, _file: str) -> str:
        number = int(block.removeprefix("memory"))
        if self.blocks().get(number) != int(node.removeprefix("node")):
            raise Refusal
        return "online\n"


@asynccontextmanager
async def fake_qemu(folder: Path, num_devices: int = 2) -> AsyncIterator[FakeQemu]:
    """One that listens, with devices of DEVICE_BYTES one behind the other."""
    devices = {
        f"vm{number}": FakeDevice(node=number, address=FIRST_ADDRESS + (number - 1) * DEVICE_BYTES)
        for number in range(1, num_devices + 1)
    }
    qemu = FakeQemu(devices=devices, qmp=folder / "qmp", agent=folder / "agent")

    async def monitor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await qemu._serve(reader, writer, greets=True)

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await qemu._serve(reader, writer, greets=False)

    async with (
        await asyncio.start_unix_server(monitor, qemu.qmp),
        await asyncio.start_unix_server(agent, qemu.agent),
    ):
        yield qemu
        qemu.drop_connections()
