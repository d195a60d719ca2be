"""Products of few rows or many with a weight of bfloat16 on a CPU, compiled as cpu_kernels' loops.

A row's results are added up in the same order whatever rows it is multiplied with: what a request
gets does not depend on its company. Reading the weights is what few rows cost; measured on a Zen 4,
one thread, all matrices of SmolLM2-135M: 1 row 10 ms (oneDNN 19), 16 rows 25 (31), 64 rows 84 (92),
where reading the weights takes 10 ms and multiplying 16 rows 19.
"""

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_dots import MOST_ROWS, PAIR_BYTES, WIDTH, add_dots, operand
from anole_worker.runtime.cpu_numbers import narrow, wide

PANEL = 96
"""Rows of x that each block of weights is multiplied with before the next."""
_MOST_PAIRS = 1024
"""Of a block of weights, which stays in the cache of a core: 256 KiB."""
_ALIGNMENT = 64


def pack(weight: Tensor) -> Tensor:
    """A dense [out, in] weight, in even, as multiply() reads it: [blocks, in / 2, WIDTH, 2]."""
    num_out, num_in = weight.shape
    padded = functional.pad(weight, (0, 0, 0, -num_out % WIDTH))
    return padded.view(-1, WIDTH, num_in // 2, 2).transpose(1, 2).contiguous()


@compiled
def multiply(y: Any, x: Any, packed: Any, bias: Any) -> None:
    """Y = x W^T + bias.

    Args:
        y: [rows, out], bfloat16 or float32.
        x: bfloat16 [rows, in], its rows whole.
        packed: W, as pack() gives it.
        bias: [out], or [0]: none.
    """
    rows = len(x)
    blocks, pairs = packed.shape[:2]
    held = np.empty(PANEL * WIDTH + _ALIGNMENT // 4, dtype=np.float32)
    first = (-held.ctypes.data % _ALIGNMENT) // 4
    sums = held[first : first + PANEL * WIDTH].reshape(PANEL, WIDTH)
    for begin in range(0, rows, PANEL):
        count = min(PANEL, rows - begin)
        those = operand(x[begin : begin + count])
        address, stride = those.ctypes.data, those.strides[0]
        for block in range(blocks):
            sums[:count] = np.float32(0)
            weights = packed[block].ctypes.data
            for pair in range(0, pairs, _MOST_PAIRS):
                add_tiles(
                    sums.ctypes.data,
                    address + pair * PAIR_BYTES,
                    stride,
                    weights + pair * WIDTH * 4,
                    min(_MOST_PAIRS, pairs - pair),
                    count,
                )
            _store(y[begin : begin + count], sums, block * WIDTH, bias)


@compiled
def add_tiles(sums: int, x: int, stride: int, weights: int, pairs: int, count: int) -> None:
    """As add_dots(), of any number of rows.

    Shared as evenly as they can be: a tile of few takes nearly as long as one of many.
    """
    tiles = (count + MOST_ROWS - 1) // MOST_ROWS
    for tile in range(tiles):
        row, end = count * tile // tiles, count * (tile + 1) // tiles
        add_dots(sums + row * WIDTH * 4, x + row * stride, stride, weights, pairs, end - row)


@compiled
def _store(y: Any, sums: Any, column: int, bias: Any) -> None:
    width = min(WIDTH, y.shape[1] - column)
    for row in range(len(y)):
        part, found = y[row][column : column + width], sums[row]
        if len(bias):
            for index in range(width):
                found[index] += wide(bias[column + index])
        for index in range(width):
            part[index] = narrow(found[index], y)
