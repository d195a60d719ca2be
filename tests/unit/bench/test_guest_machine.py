from pathlib import Path

from anole_shared.units import MiB
from bench.guest.machine import Machine, command


def arguments(machine: Machine) -> str:
    return " ".join(machine.arguments())


def test_segregated_devices_have_a_node_each_that_the_firmware_knows() -> None:
    told = arguments(Machine(devices=9, device_bytes=256 * MiB, own_nodes=True))
    for number in range(1, 10):
        assert f"-numa node,nodeid={number} " in told
        assert f"id=vm{number},memdev=memory-vm{number},node={number}," in told
        assert f"id=node-vm{number},pci-dev=vm{number},node={number}" in told
    assert "addr=0x4.0" in told
    assert "addr=0x5.0" in told  # eight functions a slot


def test_a_stock_device_shares_the_node_of_the_boot_memory() -> None:
    told = arguments(Machine(devices=1, device_bytes=512 * MiB, own_nodes=False))
    assert "id=vm1,memdev=memory-vm1,node=0," in told
    assert "acpi-generic-initiator" not in told
    assert told.count("-numa") == 1


def test_kvm_uses_this_machines_processor_and_each_agent_has_a_socket(tmp_path: Path) -> None:
    machine = Machine(
        devices=1, device_bytes=128 * MiB, own_nodes=True, kernel_options="init_on_alloc=0"
    )
    for accel, cpu in (("kvm", "host"), ("tcg", "max,la57=off")):
        line = command(machine, kernel=Path("/k"), initramfs=Path("/i"), run=tmp_path, accel=accel)
        assert line[line.index("-cpu") + 1] == cpu
        assert line[line.index("-append") + 1].endswith("init_on_alloc=0")
        for name in ("shell", "agent"):
            assert f"socket,id={name},path={tmp_path / name},server=on,wait=off" in line
