"""CloudHypervisor: memory zones of a Cloud Hypervisor machine, through its REST interface.

See vmm/src/api/openapi/cloud-hypervisor.yaml and docs/memory.md of Cloud Hypervisor: a zone with a
hotplug_size has a virtio-mem device of that size, whose memory goes to the guest's node that names
the zone. Its `hotplugged_size` is what was asked for; how much the guest has plugged is told for
all zones together, as `memory_actual_size`. So one zone is changed at a time, and what is missing
of the sum is counted as missing of that zone.
"""

from pathlib import Path
from typing import Any

from anole_memd.backends.hypervisor import Device
from anole_memd.backends.unix_http import UnixHttp
from anole_memd.errors import RegionRefused
from anole_shared.units import MiB

_BLOCK_BYTES = 2 * MiB


class CloudHypervisor:
    """One virtual machine, started with hotplug_method=virtio-mem."""

    name = "Cloud Hypervisor"
    one_at_a_time = True

    def __init__(self, socket: Path) -> None:
        self._http = UnixHttp(socket, self.name)
        self._boot_bytes: dict[str, int] = {}
        self._changing: str | None = None
        self._missing: dict[str, int] = {}
        """What zones that were changed before lacked then; below zero: had too much."""

    async def devices(self) -> tuple[Device, ...]:
        info = await self._http.ask("GET", "/api/v1/vm.info")
        config = info["config"]
        zones = [zone for zone in config["memory"].get("zones") or () if _max_bytes(zone)]
        self._boot_bytes = {zone["id"]: zone["size"] for zone in zones}
        nodes = {
            zone_id: node["guest_numa_id"]
            for node in config.get("numa") or ()
            for zone_id in node.get("memory_zones") or ()
        }
        self._note_missing(_requested(zones) - self._plugged(info))
        devices = [
            Device(
                device_id=zone["id"],
                max_bytes=_max_bytes(zone),
                block_bytes=_BLOCK_BYTES,
                requested_bytes=zone.get("hotplugged_size") or 0,
                size_bytes=(zone.get("hotplugged_size") or 0) - self._missing.get(zone["id"], 0),
                node=nodes.get(zone["id"]),
            )
            for zone in zones
        ]
        return tuple(sorted(devices, key=lambda device: device.device_id))

    def _note_missing(self, in_all: int) -> None:
        if not in_all:
            self._missing.clear()
        elif self._changing is not None:
            self._missing.pop(self._changing, None)
            self._missing[self._changing] = in_all - sum(self._missing.values())

    @staticmethod
    def _plugged(info: dict[str, Any]) -> int:
        """What the guest has plugged of all zones."""
        memory = info["config"]["memory"]
        zones = memory.get("zones") or ()
        boot_bytes: int = memory["size"] + sum(zone["size"] for zone in zones)
        balloon: int = (info["config"].get("balloon") or {}).get("size", 0)
        actual: int = info["memory_actual_size"]
        return actual + balloon - boot_bytes

    async def request(self, device_id: str, num_bytes: int) -> None:
        await self.devices()  # what the zone before lacks is its own
        size = self._boot_bytes.get(device_id)
        if size is None:
            raise RegionRefused(f"{self.name} has no memory zone {device_id}")
        self._changing = device_id
        body = {"id": device_id, "desired_ram": size + num_bytes}
        await self._http.ask("PUT", "/api/v1/vm.resize-zone", body)

    async def close(self) -> None:
        await self._http.close()


def _max_bytes(zone: dict[str, Any]) -> int:
    return zone.get("hotplug_size") or 0


def _requested(zones: list[dict[str, Any]]) -> int:
    return sum(zone.get("hotplugged_size") or 0 for zone in zones)
