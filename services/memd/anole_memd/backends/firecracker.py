"""Firecracker: the hotpluggable memory of microVMs, through their REST interfaces.

See /hotplug/memory in src/firecracker/swagger/firecracker.yaml and docs/memory-hotplug.md of
Firecracker (1.14 or later; before 1.16 the host did not protect what was unplugged of unaligned
blocks). A microVM has one such device and no NUMA nodes: a region is a whole microVM's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anole_memd.backends.hypervisor import Device
from anole_memd.backends.unix_http import UnixHttp
from anole_memd.errors import RegionRefused
from anole_shared.units import MiB

_PATH = "/hotplug/memory"


class Firecracker:
    """Several microVMs, each with its socket; a device is called by its path."""

    name = "Firecracker"
    one_at_a_time = False

    def __init__(self, sockets: Sequence[Path]) -> None:
        self._microvms = {str(path): UnixHttp(path, self.name) for path in sockets}

    async def devices(self) -> tuple[Device, ...]:
        """See Hypervisor; all microVMs must answer."""
        return tuple(
            [_device(name, await http.ask("GET", _PATH)) for name, http in self._microvms.items()]
        )

    async def configure(self, device_id: str, num_bytes: int) -> None:
        """Give a microVM that was not started yet its device, of this size at most."""
        await self._http(device_id).ask("PUT", _PATH, {"total_size_mib": num_bytes // MiB})

    async def request(self, device_id: str, num_bytes: int) -> None:
        body = {"requested_size_mib": num_bytes // MiB}
        await self._http(device_id).ask("PATCH", _PATH, body)

    async def close(self) -> None:
        for http in self._microvms.values():
            await http.close()

    def _http(self, device_id: str) -> UnixHttp:
        try:
            return self._microvms[device_id]
        except KeyError:
            raise RegionRefused(f"no microVM has the socket {device_id}") from None


def _device(name: str, status: dict[str, Any]) -> Device:
    return Device(
        device_id=name,
        max_bytes=status["total_size_mib"] * MiB,
        # What is not a multiple of a slot stays mapped in the host when it is unplugged.
        block_bytes=max(status["block_size_mib"], status["slot_size_mib"]) * MiB,
        requested_bytes=status["requested_size_mib"] * MiB,
        size_bytes=status["plugged_size_mib"] * MiB,
    )
