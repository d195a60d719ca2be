"""Which backend the settings name. A new one is added here and to BackendSettings.backend."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from anole_memd.backend import Backend
from anole_memd.backend_settings import BackendSettings
from anole_memd.backends.cpusets import Cpusets
from anole_memd.backends.hypervisor import Hypervisor
from anole_memd.backends.memfd import MemfdBackend
from anole_memd.backends.memory_blocks import MemoryBlocks
from anole_memd.backends.node_memory import id_list
from anole_memd.backends.numa import Numa
from anole_shared.errors import ConfigurationError


def backend_of(settings: BackendSettings) -> Backend:
    """The backend, not proved yet.

    Raises:
        ConfigurationError: a setting that it needs is missing.
    """
    return _MAKERS[settings.backend](settings)


def _numa(settings: BackendSettings) -> Backend:
    return Numa(
        MemoryBlocks(),
        nodes=id_list(settings.nodes),
        node_bytes=settings.node_bytes,
        cpusets=Cpusets(settings.cpusets) if settings.cpusets else None,
    )


def _virtio_mem(settings: BackendSettings) -> Backend:
    sockets = [
        Path(path.strip()) for path in settings.hypervisor_sockets.split(",") if path.strip()
    ]
    if not sockets or (len(sockets) > 1 and settings.hypervisor != "firecracker"):
        raise ConfigurationError(
            f"virtio-mem with {settings.hypervisor} was given {len(sockets)} sockets: set "
            "ANOLE_MEMD_HYPERVISOR_SOCKETS to where it listens (more than one: Firecracker only)"
        )
    agent = settings.guest_agent_socket
    if agent is not None and settings.hypervisor != "qemu":
        raise ConfigurationError(
            f"{settings.hypervisor} does not tell where its devices lie in the guest's memory, so "
            "that its agent is of no use: unset ANOLE_MEMD_GUEST_AGENT_SOCKET, and run memd with "
            "the backend numa in the guest"
        )
    # Late: aiohttp and qemu.qmp are most of what memd would load, and memfd needs neither.
    from anole_memd.backends.guest_agent import GuestAgent
    from anole_memd.backends.virtio_mem import VirtioMem

    hypervisor = _hypervisor(settings.hypervisor, sockets)
    return VirtioMem(hypervisor, GuestAgent(agent) if agent is not None else None)


def _hypervisor(name: str, sockets: Sequence[Path]) -> Hypervisor:
    match name:
        case "qemu":
            from anole_memd.backends.qemu import Qemu

            return Qemu(sockets[0])
        case "cloud-hypervisor":
            from anole_memd.backends.cloud_hypervisor import CloudHypervisor

            return CloudHypervisor(sockets[0])
        case _:
            from anole_memd.backends.firecracker import Firecracker

            return Firecracker(sockets)


_MAKERS: Mapping[str, Callable[[BackendSettings], Backend]] = {
    "memfd": lambda _: MemfdBackend(),
    "numa": _numa,
    "virtio-mem": _virtio_mem,
}
