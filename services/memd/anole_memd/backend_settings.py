"""What backends are told."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_shared.settings import Settings


class BackendSettings(Settings):
    """Which memory regions are made of, and where it is found."""

    model_config = SettingsConfigDict(env_prefix="ANOLE_MEMD_", frozen=True, extra="forbid")

    backend: Literal["memfd", "numa", "virtio-mem"] = Field(
        default="memfd",
        description="What regions are: memfd (files in memory, handed to their holders), numa "
        "(memory-only NUMA nodes of this kernel), virtio-mem (devices of a guest).",
    )
    nodes: str = Field(
        default="",
        pattern=r"^(\d+(-\d+)?(,\d+(-\d+)?)*)?$",
        description="numa: the nodes that are memd's, e.g. 1-4,6. Unset: all without a processor.",
    )
    node_bytes: int | None = Field(
        default=None,
        gt=0,
        description="numa: the size of a node whose memory is not plugged yet when memd starts. "
        "Unset: such nodes are left alone.",
    )
    cpusets: Path | None = Field(
        default=None,
        description="numa: a control group (v2) with the cpuset controller, below which memd makes "
        "one for each node. Unset: holders bind themselves.",
    )
    hypervisor: Literal["qemu", "cloud-hypervisor", "firecracker"] = Field(
        default="qemu", description="virtio-mem: whose devices they are."
    )
    hypervisor_sockets: str = Field(
        default="",
        description="virtio-mem: where it listens: QEMU's QMP socket (one of memd's own), Cloud "
        "Hypervisor's API socket, or those of all Firecracker microVMs, with commas.",
    )
    guest_agent_socket: Path | None = Field(
        default=None,
        description="virtio-mem with QEMU: the socket of the guest's qemu-guest-agent, through "
        "which memory is taken offline before it is unplugged. Unset: the guest does that itself.",
    )
