import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from anole_worker.errors import AdapterRefused
from anole_worker.safetensors_header import MAX_HEADER_BYTES, TensorSpan, read_spans
from tests.unit.worker.peft_folders import write_raw


def spans_of(path: Path) -> list[TensorSpan]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_spans(descriptor, path)
    finally:
        os.close(descriptor)


def entry(begin: int, end: int, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_spans_are_where_the_tensors_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors: dict[str, NDArray[np.floating]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(5, dtype=np.float16),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    content = path.read_bytes()
    found = {span.name: span for span in spans_of(path)}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        span = found[name]
        assert span.shape == tensor.shape
        assert content[span.begin : span.end] == tensor.tobytes()


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        (b"{]", b"", "no JSON"),
        (b"[" * 100_000, b"", "no JSON"),
        ([1], b"", "no JSON object"),
        ({"a": 7}, b"", "has type"),
        ({"a": entry(0, 16, dtype="I8")}, bytes(16), "convert it to one of F32, F16, BF16"),
        ({"a": entry(0, 16, dtype=["F32"])}, bytes(16), "has type"),
        ({"a": entry(0, 16, shape=7)}, bytes(16), "malformed"),
        ({"a": entry(0, 16, shape=[-4])}, bytes(16), "malformed"),
        ({"a": entry(0, 16, shape=[True])}, bytes(16), "malformed"),
        ({"a": {**entry(0, 16), "data_offsets": [0]}}, bytes(16), "malformed"),
        ({"a": entry(0, 12)}, bytes(12), "do not match its shape"),
        ({"a": entry(16, 0)}, bytes(16), "do not match its shape"),
        ({"a": entry(0, 16)}, bytes(15), "cut short"),
        ({"a": entry(0, 16)}, bytes(17), "extended"),
        ({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24), "overlaps"),
        ({"a": entry(0, 16), "b": entry(20, 36)}, bytes(36), "gap"),
        ({"a": entry(4, 20)}, bytes(20), "gap"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, header: Any, data: bytes, reason: str
) -> None:
    path = write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(AdapterRefused, match=reason) as error:
        spans_of(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00" * 8, b"\xff" * 64])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(AdapterRefused, match="no safetensors file or was cut short"):
        spans_of(path)


def test_a_header_has_a_limit(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.safetensors", b" " * (MAX_HEADER_BYTES + 1), b"")
    with pytest.raises(AdapterRefused, match="longer than"):
        spans_of(path)
