"""Qemu: virtio-mem devices of a QEMU machine, through QMP.

The machine that memd expects has one device for each region, on a node of its own; see
services/memd/README.md for the command line. See qapi/machine.json of QEMU: query-memory-devices.
"""

from pathlib import Path

from anole_memd.backends.hypervisor import Device
from anole_memd.backends.monitor import CommandFailed, Monitor, MonitorGone
from anole_memd.errors import BackendSilent, RegionRefused


class Qemu:
    """One virtual machine. Its QMP socket takes one client: give memd a monitor of its own."""

    name = "QEMU"
    one_at_a_time = False

    def __init__(self, socket: Path) -> None:
        self._monitor = Monitor(socket, "QEMU", greets=True)

    async def devices(self) -> tuple[Device, ...]:
        try:
            found = await self._monitor.ask("query-memory-devices")
        except MonitorGone as fault:
            raise BackendSilent(str(fault)) from fault
        except CommandFailed as fault:
            raise RegionRefused(str(fault)) from fault
        devices = [
            Device(
                device_id=one["data"]["id"],
                max_bytes=one["data"]["max-size"],
                block_bytes=one["data"]["block-size"],
                requested_bytes=one["data"]["requested-size"],
                size_bytes=one["data"]["size"],
                address=one["data"]["memaddr"],
                node=one["data"]["node"],
            )
            for one in found
            if one["type"] == "virtio-mem" and "id" in one["data"]
        ]
        return tuple(sorted(devices, key=lambda device: device.device_id))

    async def request(self, device_id: str, num_bytes: int) -> None:
        try:
            await self._monitor.ask(
                "qom-set",
                {
                    "path": f"/machine/peripheral/{device_id}",
                    "property": "requested-size",
                    "value": num_bytes,
                },
            )
        except MonitorGone as fault:
            raise BackendSilent(str(fault)) from fault
        except CommandFailed as fault:
            raise RegionRefused(str(fault)) from fault

    async def close(self) -> None:
        await self._monitor.close()
