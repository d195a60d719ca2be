import os
from pathlib import Path

import numpy as np
import pytest
import torch

from anole_worker.adapter_files import OpenAdapter
from anole_worker.runtime.unpacking import Placement, unpack
from anole_worker.safetensors_header import TensorSpan

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def opened(path: Path, content: bytes) -> OpenAdapter:
    path.write_bytes(content)
    return OpenAdapter(
        weights_path=path,
        config_bytes=b"",
        config_fingerprint=(0, 0, 0),
        modules=(),
        descriptor=os.open(path, os.O_RDONLY),
    )


def file_of(tensors: list[tuple[str, torch.Tensor]], gap: bytes) -> tuple[bytes, list[TensorSpan]]:
    content, spans = gap, []
    for dtype, tensor in tensors:
        numbers = tensor.to(DTYPES[dtype]).view(torch.uint8).numpy().tobytes()
        begin = len(content)
        content += numbers
        shape = tuple(tensor.shape)
        spans.append(TensorSpan(name="", dtype=dtype, shape=shape, begin=begin, end=len(content)))
    return content, spans


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("gap", [b"", b"odd"])
def test_tensors_arrive_scaled_transposed_and_rounded_once(
    tmp_path: Path, source: str, dtype: torch.dtype, gap: bytes
) -> None:
    generator = torch.Generator().manual_seed(7)
    shapes = [(5, 3), (70, 33), (1, 1), (64, 32)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    content, spans = file_of([(source, tensor) for tensor in tensors], gap)
    arena = torch.full((sum(t.numel() for t in tensors),), torch.nan, dtype=dtype)
    placements, expected, begin = [], [], 0
    for index, (span, tensor) in enumerate(zip(spans, tensors, strict=True)):
        is_turned, scale = bool(index % 2), (1.0, 0.37)[index % 2]
        placements.append(Placement(span=span, begin=begin, scale=scale, is_turned=is_turned))
        number = tensor.to(DTYPES[source]).float() * torch.tensor(scale)
        expected.append((number.t() if is_turned else number).reshape(-1).to(dtype))
        begin += tensor.numel()
    total = unpack(opened(tmp_path / "weights", content), placements[::-1], arena)
    assert torch.equal(arena, torch.cat(expected))
    assert total == pytest.approx(float(arena.float().sum()), rel=1e-2)


def test_tensors_of_all_types_in_one_file_need_not_be_aligned(tmp_path: Path) -> None:
    tensors = [("BF16", torch.ones(1, 1)), ("F32", torch.ones(3, 3) * 2), ("F16", torch.ones(2, 5))]
    content, spans = file_of(tensors, b"x")
    arena = torch.zeros(20)
    placements = [
        Placement(span=span, begin=begin) for span, begin in zip(spans, (0, 1, 10), strict=True)
    ]
    assert unpack(opened(tmp_path / "weights", content), placements, arena) == 1 + 18 + 10
    assert arena.tolist() == [1.0] + [2.0] * 9 + [1.0] * 10


def test_every_float16_number_is_widened_as_torch_does(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    span = TensorSpan(name="", dtype="F16", shape=(256, 256), begin=0, end=2 * 2**16)
    arena = torch.zeros(2**16)
    total = unpack(
        opened(tmp_path / "weights", bits.tobytes()), [Placement(span=span, begin=0)], arena
    )
    assert np.array_equal(arena.numpy(), bits.astype(np.float32).reshape(-1), equal_nan=True)
    assert np.isnan(total)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_stays_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = torch.where(numbers.isfinite(), numbers, 1).reshape(256, 256)
    source = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    content, (span,) = file_of([(source, numbers)], b"")
    arena = torch.zeros(2**16, dtype=dtype)
    unpack(opened(tmp_path / "weights", content), [Placement(span=span, begin=0)], arena)
    assert torch.equal(arena.view(torch.int16), numbers.reshape(-1).view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_any_number_is_rounded_as_torch_rounds(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    any_bits = torch.randint(-(2**31), 2**31, (256, 512), generator=generator).int()
    sizes = 2.0 ** torch.arange(-28, 18).repeat(6)[:256, None]
    near_float16 = torch.randn(256, 512, generator=generator) * sizes
    numbers = torch.cat([any_bits.view(torch.float32).nan_to_num(), near_float16])
    content, (span,) = file_of([("F32", numbers)], b"")
    arena = torch.zeros(512 * 512, dtype=dtype)
    unpack(opened(tmp_path / "weights", content), [Placement(span=span, begin=0)], arena)
    expected = numbers.to(dtype).reshape(-1)
    assert torch.equal(arena.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("is_turned", [True, False])
@pytest.mark.parametrize(
    ("source", "dtype"),
    [
        ("F32", torch.float32),
        ("F32", torch.float16),
        ("F16", torch.float16),
        ("BF16", torch.bfloat16),
    ],
)
def test_one_number_that_is_not_finite_shows_in_the_sum(
    tmp_path: Path, source: str, dtype: torch.dtype, number: float, is_turned: bool
) -> None:
    tensor = torch.zeros(40, 40)
    tensor[37, 3] = number
    content, (span,) = file_of([(source, tensor)], b"")
    placement = Placement(span=span, begin=0, is_turned=is_turned)
    arena = torch.zeros(1600, dtype=dtype)
    total = unpack(opened(tmp_path / "weights", content), [placement], arena)
    assert not np.isfinite(total)
