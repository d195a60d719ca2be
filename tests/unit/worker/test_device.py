"""The device put together for a processor."""

from pathlib import Path

import pytest

from anole_shared.clock import SystemClock
from anole_shared.errors import ConfigurationError
from anole_shared.units import GiB
from anole_worker import model_shape
from anole_worker.leases import RegionClient
from anole_worker.runtime.device import Device
from anole_worker.settings import WorkerSettings
from tests.unit.worker.tiny import make_model, row, step


def make_device(tmp_path: Path, **settings: object) -> Device:
    folder = make_model(tmp_path / "model")
    regions = RegionClient(tmp_path / "memd.sock", "test")
    chosen = WorkerSettings(device="cpu", dtype="float32", **settings)
    return Device(folder, model_shape.read(folder), chosen, regions, SystemClock())


def test_a_processor_shares_what_the_setting_says_and_has_no_copies(tmp_path: Path) -> None:
    device = make_device(tmp_path, memory_bytes=10**6)
    assert device.memory_bytes == 10**6
    assert device.block_bytes * 2 < 10**6
    assert device.host_adapters() == ()
    (drawn,) = device.run(step(row("a", [5, 6, 7], [0])))
    assert drawn.token_id is not None
    device.give_back((0,))
    device.close()


def test_a_processor_has_memory_without_being_told(tmp_path: Path) -> None:
    device = make_device(tmp_path)
    assert device.memory_bytes == 2 * GiB
    device.close()


def test_memory_too_small_for_a_block_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="one block of this model's keys and values"):
        make_device(tmp_path, memory_bytes=100)


def test_a_fault_of_a_step_is_told_as_it_is_where_the_device_is_well(tmp_path: Path) -> None:
    device = make_device(tmp_path, memory_bytes=10**6)
    with pytest.raises(IndexError):
        device.run(step(row("a", [999_999], [0])))
    (drawn,) = device.run(step(row("a", [5], [0])))
    assert drawn.token_id is not None
    device.close()
