"""An adapter on its way to a GPU: narrowed to the model's type, then copied."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from anole_worker import adapter_files
from anole_worker.adapter_files import AdapterFile
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import QKV
from anole_worker.runtime import upload
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.lora_table import make_table
from anole_worker.runtime.packing import Packing
from tests.unit.worker.fake_gpu import GPU, faking
from tests.unit.worker.peft_folders import SHAPE, tensor_name, tensors, write_adapter

HALVES = [torch.bfloat16, torch.float16]


def written(folder: Path, **choice: float) -> tuple[AdapterFile, dict[str, torch.Tensor]]:
    """An adapter with a scale that is no power of two, and what its file holds."""
    weights = tensors()
    for name, value in choice.items():
        weights[tensor_name(1, name, "B")][0] = value
    write_adapter(folder, weights=weights, fields={"lora_alpha": 3})
    return adapter_files.read(folder, SHAPE), {
        name: torch.from_numpy(x) for name, x in weights.items()
    }


def factors(adapter: LoadedAdapter) -> list[torch.Tensor]:
    """Of the last layer: the stacked As, then each B."""
    delta = adapter.layers[1][QKV]
    assert delta is not None
    return [delta.down, *(part.up for part in delta.parts)]


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_are_rounded_once_to_the_models_type(tmp_path: Path, dtype: torch.dtype) -> None:
    file, weights = written(tmp_path)
    adapter = load(file, bytearray(file.packed_bytes(2)), Packing(dtype))
    down, q, v = factors(adapter)
    a = [weights[tensor_name(1, module, "A")] for module in ("q_proj", "v_proj")]
    assert torch.equal(down, torch.cat(a).T.to(dtype))
    for module, up in (("q_proj", q), ("v_proj", v)):
        assert torch.equal(up, (weights[tensor_name(1, module, "B")].T * 0.75).to(dtype))


def test_weights_take_no_more_memory_than_their_type_needs(tmp_path: Path) -> None:
    file, _ = written(tmp_path)
    num_bytes = file.packed_bytes(2)
    assert load(file, bytearray(num_bytes), Packing(torch.bfloat16)).arena.nbytes == num_bytes
    with pytest.raises(ValueError, match="cannot hold"):
        load(file, bytearray(num_bytes - 1), Packing(torch.bfloat16))


def test_weights_too_large_for_the_models_type_are_refused(tmp_path: Path) -> None:
    file, _ = written(tmp_path, v_proj=1e6)
    load(file, bytearray(file.packed_bytes(4)), Packing(torch.bfloat16))
    with pytest.raises(AdapterRefused, match="infinite"):
        load(file, bytearray(file.packed_bytes(4)), Packing(torch.float16))


def test_many_weights_near_the_types_limit_are_not(tmp_path: Path) -> None:
    file, _ = written(tmp_path, v_proj=3e4)
    load(file, bytearray(file.packed_bytes(4)), Packing(torch.float16))


def test_an_adapter_over_a_copy_of_its_arena_says_the_same(tmp_path: Path) -> None:
    file, _ = written(tmp_path)
    adapter = load(file, bytearray(file.packed_bytes(4)))
    larger = torch.zeros(len(adapter.arena) + 8)
    copy = adapter.over(larger[8:].copy_(adapter.arena))
    before = [tensor.clone() for tensor in factors(adapter)]
    adapter.arena.zero_()
    assert not any(tensor.any() for tensor in factors(adapter))
    for tensor, expected in zip(factors(copy), before, strict=True):
        assert torch.equal(tensor, expected)
        assert tensor.stride() == expected.stride() or not expected.is_contiguous()


class FakeStream:
    """Notes what is done on it, and by it, in the order of all that is."""

    done: ClassVar[list[str]] = []

    def __init__(self, device: torch.device, name: str = "copies") -> None:
        self.device = device
        self.name = name

    def wait_stream(self, other: "FakeStream") -> None:
        self.done.append(f"{self.name} wait for {other.name}")

    def synchronize(self) -> None:
        self.done.append(f"{self.name} are there")


@contextmanager
def on_stream(stream: FakeStream) -> Iterator[None]:
    stream.done.append(f"on {stream.name}")
    yield


def test_an_upload_waits_for_what_its_memory_was_and_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = written(tmp_path)
    adapter = load(file, bytearray(file.packed_bytes(2)), Packing(torch.bfloat16))
    FakeStream.done.clear()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda own: FakeStream.done.append(str(own)))
    compute = FakeStream(GPU, "steps")
    with faking(monkeypatch):
        uploaded = upload.Uploader(SHAPE, compute).upload(adapter)
        assert uploaded.table is not None
        assert {uploaded.arena.device, uploaded.table.device} == {GPU}
    places = ["cuda:0", "on steps", "copies wait for steps", "on copies", "copies are there"]
    assert FakeStream.done == places


@pytest.fixture
def uploader() -> upload.Uploader:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return upload.Uploader(SHAPE, torch.cuda.current_stream())


@pytest.mark.gpu
def test_an_uploaded_adapter_is_on_the_gpu_and_its_table_names_its_place(
    tmp_path: Path, uploader: upload.Uploader
) -> None:
    file, _ = written(tmp_path)
    adapter = load(file, bytearray(file.packed_bytes(2)), Packing(torch.bfloat16))
    uploader.pin(adapter.arena)
    try:
        assert adapter.arena.is_pinned()
        uploaded = uploader.upload(adapter)
    finally:
        uploader.unpin(adapter.arena)
    assert uploaded.arena.is_cuda
    assert uploaded.table is not None
    assert torch.equal(uploaded.table.cpu(), make_table(uploaded.layers, SHAPE))
    for tensor, expected in zip(factors(uploaded), factors(adapter), strict=True):
        assert torch.equal(tensor.cpu(), expected)


@pytest.mark.gpu
def test_an_upload_out_of_memory_that_is_not_pinned_works(
    tmp_path: Path, uploader: upload.Uploader
) -> None:
    file, _ = written(tmp_path)
    adapter = load(file, bytearray(file.packed_bytes(4)))
    assert torch.equal(uploader.upload(adapter).arena.cpu(), adapter.arena)
