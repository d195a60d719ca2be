from pathlib import Path
from typing import Any

import pytest

from anole_memd.choice import backend_of
from anole_memd.settings import MemdSettings
from anole_shared.errors import ConfigurationError
from anole_shared.settings import load


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "memfd"),
        ({"backend": "numa", "nodes": "1-2", "cpusets": Path("/sys/fs/cgroup/anole")}, "numa"),
        ({"backend": "virtio-mem", "hypervisor_sockets": "/run/qmp"}, "virtio-mem"),
        (
            {
                "backend": "virtio-mem",
                "hypervisor": "firecracker",
                "hypervisor_sockets": "/run/1.sock, /run/2.sock",
            },
            "virtio-mem",
        ),
        (
            {
                "backend": "virtio-mem",
                "hypervisor": "cloud-hypervisor",
                "hypervisor_sockets": "/run/api",
            },
            "virtio-mem",
        ),
    ],
)
def test_each_backend_can_be_chosen(given: dict[str, Any], name: str) -> None:
    assert backend_of(load(MemdSettings, **given)).name == name


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({}, "set ANOLE_MEMD_HYPERVISOR_SOCKETS"),
        ({"hypervisor_sockets": "/run/1,/run/2"}, "Firecracker only"),
        (
            {
                "hypervisor": "cloud-hypervisor",
                "hypervisor_sockets": "/run/api",
                "guest_agent_socket": Path("/run/agent"),
            },
            "unset ANOLE_MEMD_GUEST_AGENT_SOCKET",
        ),
    ],
)
def test_what_a_backend_lacks_is_said_with_its_remedy(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ConfigurationError, match=remedy):
        backend_of(load(MemdSettings, backend="virtio-mem", **given))


def test_nodes_are_a_list_as_the_kernel_writes_them() -> None:
    with pytest.raises(ConfigurationError, match="ANOLE_MEMD_NODES"):
        load(MemdSettings, nodes="one")
