"""Three tiers: regions of a real memd, and in the device's place other host memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anole_shared.errors import AnoleError
from anole_shared.units import PAGE_BYTES, MiB
from anole_worker import adapter_files
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import Lru
from anole_worker.core.host_tier import HostTier
from anole_worker.errors import DeviceMemoryFull
from anole_worker.leases import LeaseRefused, Region, RegionClient
from anole_worker.model_shape import QKV
from anole_worker.runtime.adapter_memory import RegionAdapters, TieredAdapters
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.packing import Packing, packing_on
from bench.memd import leasing
from tests.unit.worker.peft_folders import SHAPE, tensors, write_adapter

FP32 = torch.float32
REGION_BYTES = PAGE_BYTES


class Copier:
    """Uploads into other host memory, as much of it as there is room for."""

    def __init__(self) -> None:
        self.pinned: set[int] = set()
        self.num_uploads = 0
        self.is_full = False
        self.fault: Exception | None = None

    def _fail_once(self) -> None:
        fault, self.fault = self.fault, None
        if fault is not None:
            raise fault

    def pin(self, arena: Tensor) -> None:
        self._fail_once()
        self.pinned.add(arena.data_ptr())

    def unpin(self, arena: Tensor) -> None:
        self._fail_once()
        self.pinned.remove(arena.data_ptr())

    def upload(self, adapter: LoadedAdapter) -> LoadedAdapter:
        assert adapter.arena.data_ptr() in self.pinned
        if self.is_full:
            raise torch.OutOfMemoryError("full")
        self.num_uploads += 1
        return adapter.over(adapter.arena.clone())


class Rig:
    """Adapters of one region each; so many fit the host's budget, and memd's."""

    def __init__(self, folder: Path, socket: Path, *, host: int) -> None:
        self.folder = folder
        self.copier = Copier()
        self.regions = RegionClient(socket, "test")
        self.now = 0.0
        self.tier = HostTier(host * REGION_BYTES, Lru(60.0))
        self.memory = TieredAdapters(
            self.regions, Packing(FP32), self.tier, self.copier, lambda: self.now
        )

    def adapter(self, name: str, seed: int = 0) -> tuple[Adapter, AdapterFile]:
        write_adapter(self.folder / name, weights=tensors(seed=seed))
        file = adapter_files.read(self.folder / name, SHAPE)
        assert file.packed_bytes(4) <= REGION_BYTES
        return Adapter(
            adapter_id=file.adapter_id,
            generation=file.generation,
            num_bytes=REGION_BYTES,
            rank=file.rank,
        ), file

    def load(self, name: str, seed: int = 0) -> Adapter:
        self.now += 1
        adapter, file = self.adapter(name, seed)
        self.memory.load(adapter, file, {})
        return adapter


@pytest.fixture
def socket() -> Iterator[Path]:
    with leasing(64 * MiB) as path:
        yield path


@contextmanager
def rigged(folder: Path, socket: Path, *, host: int) -> Iterator[Rig]:
    rig = Rig(folder, socket, host=host)
    try:
        yield rig
    finally:
        rig.memory.close()
        rig.regions.close()
    assert not rig.copier.pinned, "a region stayed pinned"


@pytest.fixture
def rig(tmp_path: Path, socket: Path) -> Iterator[Rig]:
    with rigged(tmp_path, socket, host=2) as rig:
        yield rig


def first_weights(adapter: LoadedAdapter) -> Tensor:
    delta = adapter.layers[0][QKV]
    assert delta is not None
    return delta.down


def test_a_loaded_adapter_is_on_the_device_and_in_host_memory(rig: Rig) -> None:
    adapter = rig.load("a", seed=3)
    on_device = rig.memory.loaded(adapter)
    right = torch.from_numpy(
        tensors(seed=3)["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    )
    assert torch.equal(first_weights(on_device)[:, :4], right.T)
    assert rig.memory.host_adapters == ("a",)
    assert on_device.arena.data_ptr() not in rig.copier.pinned


def test_what_the_device_drops_comes_back_without_the_disk(rig: Rig) -> None:
    adapter = rig.load("a")
    _, file = rig.adapter("a")
    before = rig.memory.loaded(adapter).arena.clone()
    rig.memory.drop(adapter)
    assert rig.memory.host_adapters == ("a",)
    (rig.folder / "a" / "adapter_model.safetensors").unlink()
    rig.memory.load(adapter, file, {})
    assert torch.equal(rig.memory.loaded(adapter).arena, before)
    assert rig.copier.num_uploads == 2


def test_copies_beyond_the_budget_go_and_the_devices_own_stay(rig: Rig) -> None:
    loaded = [rig.load(name) for name in ("a", "b", "c")]
    assert rig.memory.host_adapters == ("b", "c")
    assert len(rig.copier.pinned) == 2
    assert all(rig.memory.loaded(adapter).arena.isfinite().all() for adapter in loaded)


def test_without_a_budget_regions_are_only_passed_through(tmp_path: Path, socket: Path) -> None:
    with rigged(tmp_path, socket, host=0) as rig:
        adapter = rig.load("a")
        assert rig.memory.host_adapters == ()
        assert not rig.copier.pinned
        assert rig.memory.loaded(adapter).arena.isfinite().all()


def test_a_full_device_is_a_named_error_and_the_copy_is_there_for_the_next_try(rig: Rig) -> None:
    adapter, file = rig.adapter("a")
    rig.copier.is_full = True
    with pytest.raises(DeviceMemoryFull, match="ANOLE_WORKER_MEMORY_FRACTION"):
        rig.memory.load(adapter, file, {})
    assert rig.memory.host_adapters == ("a",)
    rig.copier.is_full = False
    rig.memory.load(adapter, file, {})
    assert rig.memory.loaded(adapter).arena.isfinite().all()


def test_what_cannot_be_read_leaves_nothing_behind(rig: Rig) -> None:
    adapter, file = rig.adapter("a")
    write_adapter(rig.folder / "a", weights=tensors(seed=9))
    with pytest.raises(AnoleError, match="changed since"):
        rig.memory.load(adapter, file, {})
    assert rig.memory.host_adapters == ()
    assert rig.tier.used_bytes == 0


def test_another_content_under_a_name_is_another_copy(rig: Rig) -> None:
    old, new = rig.load("a", seed=1), rig.load("a", seed=2)
    one, two = (first_weights(rig.memory.loaded(adapter)) for adapter in (old, new))
    assert not torch.equal(one, two)
    rig.load("b")
    assert old not in rig.tier
    assert new in rig.tier


def test_memd_has_room_again_once_idle_copies_have_gone(tmp_path: Path) -> None:
    with leasing(2 * REGION_BYTES) as socket, rigged(tmp_path, socket, host=100) as rig:
        first = rig.load("a")
        rig.load("b")
        rig.load("c")
        assert rig.memory.host_adapters == ("b", "c")
        assert rig.memory.loaded(first).arena.isfinite().all()


def test_copies_are_spared_for_the_host_and_the_device_goes_on(rig: Rig) -> None:
    loaded = [rig.load(name) for name in ("a", "b")]
    assert rig.memory.spare(1) == rig.memory.spare(10**9) > 0
    assert rig.memory.spare(1) == 0
    assert rig.memory.host_adapters == ()
    assert all(rig.memory.loaded(adapter).arena.isfinite().all() for adapter in loaded)


def test_memd_without_any_room_is_said(tmp_path: Path) -> None:
    with leasing(1) as socket, rigged(tmp_path, socket, host=100) as rig:
        with pytest.raises(LeaseRefused):
            rig.load("a")
        assert rig.tier.used_bytes == 0


def test_on_a_cpu_the_region_is_the_devices_memory(rig: Rig) -> None:
    memory = RegionAdapters(rig.regions, Packing(FP32))
    adapter, file = rig.adapter("a")
    memory.load(adapter, file, {})
    assert memory.loaded(adapter).arena.isfinite().all()
    assert memory.host_adapters == ()
    assert memory.spare(10**9) is None
    assert memory.loaded(adapter).arena.isfinite().all()
    memory.close()


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2)])
def test_on_a_cpu_a_region_is_as_long_as_the_files_numbers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, dtype: str, itemsize: int
) -> None:
    adapter, _ = rig.adapter("a")
    write_adapter(rig.folder / "a", weights=tensors(dtype=dtype))
    file = adapter_files.read(rig.folder / "a", SHAPE)
    asked, lease = [], rig.regions.lease

    def noted(num_bytes: int, **choice: Any) -> Region:
        asked.append(num_bytes)
        return lease(num_bytes, **choice)

    monkeypatch.setattr(rig.regions, "lease", noted)
    memory = RegionAdapters(rig.regions, packing_on(torch.device("cpu"), FP32))
    memory.load(adapter, file, {})
    assert asked == [file.num_weights * itemsize]
    memory.close()


def test_an_adapter_can_be_loaded_once_the_driver_pins_memory_again(rig: Rig) -> None:
    rig.copier.fault = RuntimeError("cannot pin")
    with pytest.raises(RuntimeError, match="cannot pin"):
        rig.load("a", seed=3)
    assert rig.tier.used_bytes == 0
    assert torch.equal(
        first_weights(rig.memory.loaded(rig.load("a", seed=3))),
        first_weights(rig.memory.loaded(rig.load("b", seed=3))),
    )


def test_a_copy_that_cannot_be_unpinned_keeps_no_other_adapter_from_coming(rig: Rig) -> None:
    for name in ("a", "b"):
        rig.load(name)
    rig.copier.fault = RuntimeError("cannot unpin")
    adapter = rig.load("c")
    assert rig.memory.loaded(adapter).layers
    assert rig.memory.host_adapters == ("b", "c")
    rig.copier.pinned = {copy.weights.arena.data_ptr() for copy in rig.memory._copies.values()}
