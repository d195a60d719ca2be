"""Loops over a few rows that torch does not do well on a CPU, compiled by numba, without the GIL.

Each row is computed by itself and always in the same order, so what comes out does not depend on
its company. The compiled code is kept beside this file, or in numba's own cache folder where that
cannot be written.
"""

from typing import Any

import numpy as np
from numba import carray

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_numbers import FLOAT16, FLOAT32, exp, narrow, pointer, wide

_SQUARE = 32
"""Rows and columns that are transposed at a time."""


@compiled
def normalise(normed: Any, x: Any, weight: Any, epsilon: float) -> None:
    """Normed = x / sqrt(mean(x^2) + epsilon) * weight, row by row; all [rows, size]."""
    rows, size = x.shape
    for row in range(rows):
        scale = _scale(x[row], epsilon)
        for index in range(size):
            number = wide(x[row, index]) * scale * wide(weight[index])
            normed[row, index] = narrow(number, normed)


@compiled
def _scale(numbers: Any, epsilon: float) -> Any:
    total = np.float32(0)
    for index in range(len(numbers)):
        number = wide(numbers[index])
        total += number * number
    return np.float32(1) / np.sqrt(total / np.float32(len(numbers)) + np.float32(epsilon))


@compiled
def rotate(heads: Any, count: int, norm: Any, cos: Any, sin: Any, epsilon: float) -> None:
    """Apply norms, where there are any, and positions to the first heads of each token, in place.

    Args:
        heads: [tokens, heads, size].
        count: how many of them: those of queries and keys.
        norm: [count, size] or [0, 0].
        cos: [tokens, size].
        sin: [tokens, size], its first half negated: it meets the halves swapped.
        epsilon: of the norm.
    """
    tokens, _, size = heads.shape
    numbers, half = np.empty(size, dtype=np.float32), size // 2
    for token in range(tokens):
        for head in range(count):
            part = heads[token, head]
            for index in range(size):
                numbers[index] = wide(part[index])
            if len(norm):
                scale = _scale(numbers, epsilon)
                for index in range(size):
                    numbers[index] *= scale * wide(norm[head, index])
            for index in range(half):
                turned = numbers[index] * wide(cos[token, index])
                turned += numbers[half + index] * wide(sin[token, index])
                part[index] = narrow(turned, heads)
            for index in range(half, size):
                turned = numbers[index] * wide(cos[token, index])
                turned += numbers[index - half] * wide(sin[token, index])
                part[index] = narrow(turned, heads)


@compiled
def activate(activated: Any, gate_up: Any) -> None:
    """Activated [rows, size] = silu(gate) * up, which are beside each other in [rows, 2 * size]."""
    rows, size = activated.shape
    for row in range(rows):
        part, gate, up = activated[row], gate_up[row][:size], gate_up[row][size:]
        for index in range(size):
            number = wide(gate[index])
            small = exp(-abs(number))
            share = np.float32(1) if number >= np.float32(0) else small
            part[index] = narrow(
                number * share / (np.float32(1) + small) * wide(up[index]), activated
            )


@compiled
def add(x: Any, y: Any) -> None:
    """Add y to x, both [rows, size]."""
    rows, size = x.shape
    for row in range(rows):
        sums, part = x[row], y[row]
        for index in range(size):
            sums[index] += wide(part[index])


@compiled
def unpack(target: Any, tensors: Any, scales: Any) -> Any:
    """Bring tensors out of a file's bytes into their places; the sum of all numbers written.

    Args:
        target: [numbers], changed in place.
        tensors: int64 [tensors, 6]: which of FLOAT32, FLOAT16 and BFLOAT16 it is; the address of
            its bytes; its rows and columns there; where its place in the target begins; whether it
            is transposed on the way.
        scales: float32 [tensors], what each number is multiplied with before it is rounded.
    """
    total = np.float32(0)
    for index in range(len(tensors)):
        kind, address, rows, columns, begin, is_turned = tensors[index]
        place = target[begin : begin + rows * columns]
        scale, size = scales[index], (rows, columns)
        if kind == FLOAT32:
            tensor = carray(pointer(address, np.float32), size)
            total += _unpack(place, tensor, scale, is_turned)
        elif kind == FLOAT16:
            halves = carray(pointer(address, np.int16), size)
            total += _unpack(place, halves, scale, is_turned)
        else:
            shorts = carray(pointer(address, np.uint16), size)
            total += _unpack(place, shorts, scale, is_turned)
    return total


@compiled
def _unpack(place: Any, tensor: Any, scale: Any, is_turned: bool) -> Any:
    rows, columns = tensor.shape
    if is_turned:
        return _turn(place, tensor, scale)
    total = np.float32(0)
    for row in range(rows):
        part, numbers = place[row * columns : (row + 1) * columns], tensor[row]
        for column in range(columns):
            part[column] = narrow(wide(numbers[column]) * scale, place)
            total += wide(part[column])
    return total


@compiled
def _turn(place: Any, tensor: Any, scale: Any) -> Any:
    """By squares, so that neither side's lines leave the cache before they are used up."""
    rows, columns = tensor.shape
    total = np.float32(0)
    line = np.empty(_SQUARE, tensor.dtype)
    for first in range(0, rows, _SQUARE):
        count = min(_SQUARE, rows - first)
        for begin in range(0, columns, _SQUARE):
            for column in range(begin, min(begin + _SQUARE, columns)):
                for row in range(count):
                    line[row] = tensor[first + row, column]
                at = column * rows + first
                part = place[at : at + count]
                for row in range(count):
                    part[row] = narrow(wide(line[row]) * scale, place)
                    total += wide(part[row])
    return total
