"""The guest's command line: how much memory it boots with, and its virtio-mem devices."""

from dataclasses import dataclass
from pathlib import Path

from anole_shared.units import MiB

BOOT_BYTES = 1024 * MiB
MEMORY_BLOCK_BYTES = 128 * MiB
"""What x86-64 hotplugs at a time."""
_FIRST_SLOT = 4
_FUNCTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What kind of guest."""

    devices: int
    device_bytes: int
    own_nodes: bool
    """A node for each device (segregated), or all of them on the node of the boot memory."""
    kernel_options: str = ""
    vcpus: int = 1

    @property
    def device_ids(self) -> tuple[str, ...]:
        return tuple(f"vm{number}" for number in range(1, self.devices + 1))

    def node_of(self, device_id: str) -> int:
        return int(device_id.removeprefix("vm")) if self.own_nodes else 0

    def arguments(self) -> list[str]:
        """Of QEMU, all about memory and processors."""
        boot = BOOT_BYTES // MiB
        most = boot + self.devices * (self.device_bytes // MiB) + self.devices * 1024
        arguments = ["-smp", str(self.vcpus), "-m", f"{boot}M,maxmem={most}M"]
        arguments += ["-object", f"memory-backend-ram,id=boot,size={boot}M"]
        arguments += ["-numa", f"node,nodeid=0,cpus=0-{self.vcpus - 1},memdev=boot"]
        if self.own_nodes:
            for device_id in self.device_ids:
                arguments += ["-numa", f"node,nodeid={self.node_of(device_id)}"]
        for place, device_id in enumerate(self.device_ids):
            arguments += self._device(place, device_id)
        return arguments

    def _device(self, place: int, device_id: str) -> list[str]:
        node = self.node_of(device_id)
        slot, function = divmod(place, _FUNCTIONS)
        memory = f"memory-{device_id}"
        device = (
            f"virtio-mem-pci,id={device_id},memdev={memory},node={node},requested-size=0,"
            f"bus=pcie.0,addr={_FIRST_SLOT + slot:#x}.{function},multifunction=on"
        )
        size = f"{self.device_bytes // MiB}M"
        arguments = ["-object", f"memory-backend-ram,id={memory},size={size}", "-device", device]
        if self.own_nodes:
            # Tells the guest at boot that the node exists (ACPI SRAT), so that it is ready for it.
            initiator = f"acpi-generic-initiator,id=node-{device_id},pci-dev={device_id}"
            arguments += ["-object", f"{initiator},node={node}"]
        return arguments


def command(machine: Machine, *, kernel: Path, initramfs: Path, run: Path, accel: str) -> list[str]:
    """What follows QEMU's name; its sockets and its console lie in the folder `run`."""
    # Where this machine is busy, the kernel's check of the timer fails and it does not boot.
    options = (
        f"console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check {machine.kernel_options}".strip()
    )
    return [
        *("-accel", accel, "-machine", "q35", "-cpu", "host" if accel == "kvm" else "max,la57=off"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(kernel), "-initrd", str(initramfs), "-append", options),
        *("-serial", f"file:{run / 'console.log'}"),
        *("-qmp", f"unix:{run / 'qmp'},server=on,wait=off"),
        *("-qmp", f"unix:{run / 'monitor'},server=on,wait=off"),
        *("-device", "virtio-serial-pci,id=serial"),
        *_agent(run, "shell", 0),
        *_agent(run, "agent", 1),
        *machine.arguments(),
    ]


def _agent(run: Path, name: str, number: int) -> list[str]:
    """A port for a guest agent of its own: each takes one client."""
    port = f"virtserialport,bus=serial.0,chardev={name},name=org.qemu.guest_agent.{number}"
    socket = f"socket,id={name},path={run / name},server=on,wait=off"
    return ["-chardev", socket, "-device", port]
