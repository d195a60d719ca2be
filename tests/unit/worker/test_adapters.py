import ctypes
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from anole_worker import adapter_files
from anole_worker.adapter_files import AdapterFile
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import MODULE_PATHS, SITES
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.packing import packing_on
from tests.unit.worker.peft_folders import SHAPE, tensor_name, tensors, write_adapter

WEIGHTS = "adapter_model.safetensors"


def good(folder: Path, **choice: object) -> AdapterFile:
    fields = {"target_modules": "all-linear", **choice}
    write_adapter(folder, weights=tensors(modules=tuple(MODULE_PATHS)), fields=fields)
    return adapter_files.read(folder, SHAPE)


def product(adapter: LoadedAdapter, layer: int, module: str) -> torch.Tensor:
    """A module's scaled B A, [out, in], out of the views that the runner uses."""
    site = next(index for index, modules in enumerate(SITES) if module in modules)
    delta = adapter.layers[layer][site]
    assert delta is not None
    part = next(part for part in delta.parts if part.columns == SHAPE.columns(module))
    return (delta.down[:, part.ranks] @ part.up).t()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_views_hold_the_scaled_factors(tmp_path: Path, dtype: str) -> None:
    weights = tensors(modules=tuple(MODULE_PATHS), dtype=dtype)
    fields = {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3}
    file = adapter_files.read(write_adapter(tmp_path, weights=weights, fields=fields), SHAPE)
    adapter = load(file, memoryview(bytearray(file.packed_bytes(4))))
    for layer in range(SHAPE.num_layers):
        for module in MODULE_PATHS:
            a, b = (weights[tensor_name(layer, module, side)].astype("f4") for side in "AB")
            torch.testing.assert_close(
                product(adapter, layer, module), torch.from_numpy(b @ a) * 1.5
            )


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    from safetensors.torch import save_file as save_torch_file

    folder = write_adapter(tmp_path)
    halves = {name: torch.from_numpy(x).bfloat16() for name, x in tensors().items()}
    save_torch_file(halves, folder / WEIGHTS)
    file = adapter_files.read(folder, SHAPE)
    adapter = load(file, memoryview(bytearray(file.packed_bytes(4))))
    a, b = (halves[tensor_name(1, "v_proj", side)].float() for side in "AB")
    torch.testing.assert_close(product(adapter, 1, "v_proj"), b @ a * 2)


def stored(weights: dict[str, np.ndarray], name: str) -> dict[str, torch.Tensor]:
    """The weights in a type, or in one type for A and another for B."""
    dtypes = [getattr(torch, dtype) for dtype in name.split("/")]
    return {
        key: torch.from_numpy(tensor).to(dtypes[-1] if "lora_B" in key else dtypes[0])
        for key, tensor in weights.items()
    }


@pytest.mark.parametrize(
    ("types", "kept"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("bfloat16/float16", torch.float32),
        ("float16/float32", torch.float32),
    ],
)
def test_numbers_stay_what_they_are_in_the_file_and_scales_apart(
    tmp_path: Path, types: str, kept: torch.dtype
) -> None:
    from safetensors.torch import save_file as save_torch_file

    pattern = {"v_proj": 7, "layers.0.self_attn.q_proj": 0}
    folder = write_adapter(tmp_path, fields={"lora_alpha": 3, "alpha_pattern": pattern})
    weights = stored(tensors(), types)
    save_torch_file(weights, folder / WEIGHTS)
    file = adapter_files.read(folder, SHAPE)
    packing = packing_on(torch.device("cpu"), torch.float32)
    assert packing.num_bytes(file) == file.num_weights * kept.itemsize
    adapter = load(file, bytearray(packing.num_bytes(file)), packing)
    assert adapter.arena.dtype == kept
    for layer, scales in enumerate([(0, 7 / 4), (3 / 4, 7 / 4)]):
        delta = adapter.layers[layer][0]
        assert delta is not None
        assert tuple(part.scale for part in delta.parts) == scales
        for module, part in zip(("q_proj", "v_proj"), delta.parts, strict=True):
            a, b = (weights[tensor_name(layer, module, side)] for side in "AB")
            assert torch.equal(delta.down[:, part.ranks], a.to(kept).t())
            assert torch.equal(part.up, b.to(kept).t())


@pytest.mark.parametrize("types", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_what_is_no_finite_number_is_refused_in_every_type(
    tmp_path: Path, types: str, number: float
) -> None:
    from safetensors.torch import save_file as save_torch_file

    folder, weights = write_adapter(tmp_path), tensors()
    weights[tensor_name(1, "v_proj", "B")][3, 2] = number
    save_torch_file(stored(weights, types), folder / WEIGHTS)
    file = adapter_files.read(folder, SHAPE)
    packing = packing_on(torch.device("cpu"), torch.float32)
    with pytest.raises(AdapterRefused, match="infinite"):
        load(file, bytearray(packing.num_bytes(file)), packing)


def test_other_models_and_devices_have_adapters_in_their_own_type() -> None:
    for device, model in (("cpu", torch.bfloat16), ("cuda", torch.float32)):
        packing = packing_on(torch.device(device), model)
        assert packing.dtypes == (model,)
        assert not packing.keeps


def test_the_weights_lie_in_the_buffer_and_nowhere_else(tmp_path: Path) -> None:
    file = good(tmp_path)
    buffer = bytearray(file.packed_bytes(4) + 100)
    adapter = load(file, memoryview(buffer))
    begin = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    for layer in adapter.layers:
        for delta in layer:
            assert delta is not None
            for tensor in (delta.down, *(part.up for part in delta.parts)):
                assert begin <= tensor.data_ptr() < begin + file.packed_bytes(4)
    assert not any(buffer[file.packed_bytes(4) :])
    before = product(adapter, 0, "q_proj").abs().sum()
    buffer[:] = bytes(len(buffer))
    assert before > 0
    assert product(adapter, 0, "q_proj").abs().sum() == 0


def test_modules_and_layers_without_weights_have_no_delta(tmp_path: Path) -> None:
    weights = tensors(modules=["k_proj"], layers=[1])
    fields = {"target_modules": ["k_proj"], "layers_to_transform": [1]}
    file = adapter_files.read(write_adapter(tmp_path, weights=weights, fields=fields), SHAPE)
    adapter = load(file, memoryview(bytearray(file.packed_bytes(4))))
    assert adapter.layers[0] == (None,) * len(SITES)
    assert [delta is None for delta in adapter.layers[1]] == [False, True, True, True]


def test_a_released_adapter_lets_its_mapping_go_and_not_before(tmp_path: Path) -> None:
    file = good(tmp_path)
    mapping = mmap.mmap(-1, file.packed_bytes(4))
    adapter = load(file, mapping)
    with pytest.raises(BufferError):
        mapping.close()
    adapter.release()
    mapping.close()
    assert adapter.layers == ()


def fail_not_finite(folder: Path) -> AdapterFile:
    weights = tensors()
    weights[tensor_name(1, "v_proj", "B")][3, 2] = np.inf
    return adapter_files.read(write_adapter(folder, weights=weights), SHAPE)


def fail_no_number(folder: Path) -> AdapterFile:
    weights = tensors()
    weights[tensor_name(0, "q_proj", "A")][0, 0] = np.nan
    return adapter_files.read(write_adapter(folder, weights=weights), SHAPE)


def fail_swapped(folder: Path) -> AdapterFile:
    file = good(folder)
    weights = load_file(folder / WEIGHTS)
    save_file({name: tensor * 2 for name, tensor in weights.items()}, folder / "new")
    (folder / "new").replace(folder / WEIGHTS)
    return file


def fail_written_over(folder: Path) -> AdapterFile:
    file = good(folder)
    with (folder / WEIGHTS).open("r+b") as weights:
        weights.seek(-4, os.SEEK_END)
        weights.write(bytes(4))
    os.utime(folder / WEIGHTS, ns=(0, 1))
    return file


def fail_other_config(folder: Path) -> AdapterFile:
    file = good(folder)
    write_adapter(
        folder / "new", weights={}, fields={"target_modules": "all-linear", "lora_alpha": 99}
    )
    (folder / "new" / "adapter_config.json").replace(folder / "adapter_config.json")
    return file


def fail_gone(folder: Path) -> AdapterFile:
    file = good(folder)
    (folder / WEIGHTS).unlink()
    return file


def fail_truncated(folder: Path) -> AdapterFile:
    file = good(folder)
    os.truncate(folder / WEIGHTS, 100)
    return file


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fail_not_finite, "infinite"),
        (fail_no_number, "no numbers"),
        (fail_swapped, "changed since"),
        (fail_written_over, "changed since"),
        (fail_other_config, "changed since"),
        (fail_gone, "cannot be read"),
        (fail_truncated, "cut short"),
    ],
)
def test_a_load_that_fails_leaves_the_buffer_free(
    tmp_path: Path, make: object, reason: str
) -> None:
    assert callable(make)
    file = make(tmp_path)
    mapping = mmap.mmap(-1, file.packed_bytes(4))
    with pytest.raises(AdapterRefused, match=reason) as error:
        load(file, memoryview(mapping))
    mapping.close()
    assert str(tmp_path) in str(error.value)


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = good(tmp_path)
    whole_read = os.preadv

    def cut_then_read(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        os.truncate(tmp_path / WEIGHTS, offset)
        return whole_read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", cut_then_read)
    mapping = mmap.mmap(-1, file.packed_bytes(4))
    with pytest.raises(AdapterRefused, match="cut short"):
        load(file, mapping)
    mapping.close()


def test_a_file_that_is_written_to_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = good(tmp_path)
    whole_read = os.preadv

    def read_then_touch(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        count = whole_read(descriptor, buffers, offset)
        os.utime(tmp_path / WEIGHTS, ns=(0, 1))
        return count

    monkeypatch.setattr(os, "preadv", read_then_touch)
    with pytest.raises(AdapterRefused, match="changed since"):
        load(file, bytearray(file.packed_bytes(4)))


def test_a_buffer_that_is_too_small_is_our_own_mistake(tmp_path: Path) -> None:
    file = good(tmp_path)
    with pytest.raises(ValueError, match="buffer"):
        load(file, memoryview(bytearray(file.packed_bytes(4) - 4)))
