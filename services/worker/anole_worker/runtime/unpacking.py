"""Brings an adapter's tensors from its file to their places, beside a running step.

Python's lock is what a load and a step would otherwise fight for: here a load reads a few megabytes
at a time and leaves the rest to compiled code, so that it holds the lock for microseconds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.adapter_files import OpenAdapter
from anole_worker.runtime import cpu_kernels, cpu_numbers
from anole_worker.runtime.projection import elements
from anole_worker.safetensors_header import ITEM_BYTES, TensorSpan

_READ_BYTES = 4 * 1024 * 1024
"""Of a file at once, where its tensors are not larger."""
_KINDS = {
    "F32": cpu_numbers.FLOAT32,
    "F16": cpu_numbers.FLOAT16,
    "BF16": cpu_numbers.BFLOAT16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a tensor of a file goes."""

    span: TensorSpan
    begin: int
    """Its first number's index in the arena."""
    scale: float = 1.0
    """What its numbers are multiplied with, before they are rounded to the arena's type."""
    is_turned: bool = False
    """Whether rows become columns."""


def unpack(adapter: OpenAdapter, placements: Sequence[Placement], arena: Tensor) -> float:
    """Read the tensors into the arena; the sum of all their numbers.

    The sum is finite only if every number is.

    Raises:
        AdapterRefused: the file ends before they do.
    """
    total = 0.0
    room = bytearray()
    target = elements(arena)
    for part in _parts(sorted(placements, key=lambda placement: placement.span.begin)):
        begin, end = part[0].span.begin, part[-1].span.end
        if len(room) < end - begin:
            room = bytearray(end - begin)
        adapter.read_into(begin, memoryview(room)[: end - begin])
        total += _unpack(part, np.frombuffer(room, dtype=np.uint8), target)
    return total


def warm_up(dtypes: Iterable[torch.dtype]) -> None:
    """Compile what unpack() runs, seconds where it has never been, before a stream could notice."""
    for dtype in dtypes:
        _unpack((), np.empty(0, dtype=np.uint8), elements(torch.empty(0, dtype=dtype)))


def _parts(placements: Sequence[Placement]) -> Iterator[Sequence[Placement]]:
    """Tensors that lie side by side, whose numbers begin where the processor wants them to."""
    first = 0
    for index in range(1, len(placements) + 1):
        begin = placements[first].span.begin
        if index < len(placements):
            span = placements[index].span
            is_beside = span.begin == placements[index - 1].span.end
            is_aligned = (span.begin - begin) % ITEM_BYTES[span.dtype] == 0
            if is_beside and is_aligned and span.end - begin <= _READ_BYTES:
                continue
        yield placements[first:index]
        first = index


def _unpack(part: Sequence[Placement], source: NDArray[Any], target: NDArray[Any]) -> float:
    tensors = np.empty((len(part), 6), dtype=np.int64)
    for index, placement in enumerate(part):
        span = placement.span
        address = source.ctypes.data + span.begin - part[0].span.begin
        tensors[index] = (
            _KINDS[span.dtype],
            address,
            *span.shape,
            placement.begin,
            placement.is_turned,
        )
    scales = np.array([placement.scale for placement in part], dtype=np.float32)
    return float(cpu_kernels.unpack(target, tensors, scales))
