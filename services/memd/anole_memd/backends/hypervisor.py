"""Hypervisor: whoever can make a guest's virtio-mem device larger and smaller."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One virtio-mem device as it stands, in bytes."""

    device_id: str
    max_bytes: int
    block_bytes: int
    requested_bytes: int
    size_bytes: int
    """What the guest has plugged of it."""
    address: int | None = None
    """Where it begins in the guest's physical memory; None where the hypervisor does not tell."""
    node: int | None = None
    """The guest's NUMA node that its memory belongs to."""


class Hypervisor(Protocol):
    """Tells and asks; virtio_mem.py decides. Waits are bounded by the caller.

    Its coroutines raise RegionRefused where the hypervisor says no, BackendSilent where nobody
    answers.
    """

    @property
    def name(self) -> str: ...

    @property
    def one_at_a_time(self) -> bool:
        """Whether a device's size is only known while no other one changes."""
        ...

    async def devices(self) -> tuple[Device, ...]:
        """All virtio-mem devices, by id."""
        ...

    async def request(self, device_id: str, num_bytes: int) -> None:
        """Ask the guest, through its device, to have so many bytes plugged; does not wait."""
        ...

    async def close(self) -> None: ...
