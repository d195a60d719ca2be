"""Loops over a few rows that torch does not do well on a CPU, compiled by numba, without the GIL.

Each row is computed by itself and always in the same order, so what comes out does not depend on
its company. The compiled code is kept beside this file, or in numba's own cache folder where that
cannot be written.
"""

from typing import Any

import numpy as np
from numba import carray

from anole_worker.runtime.cpu_numbers import (
    FLOAT16,
    FLOAT32,
    compiled,
    exp,
    finite,
    from_bits,
    narrow,
    pointer,
    wide,
)

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
def add_deltas(
    y: Any, x: Any, tiles: Any, record: int, columns: Any, sizes: Any, room: Any
) -> None:
    """Add to y [tokens, out] what adapters make of x [tokens, in] at one site of one layer.

    Args:
        y: changed in place.
        x: the site's input.
        tiles: int64 [tiles, 3]: the address of an adapter's table, first token, number of tokens.
        record: where in each table the site's record begins (see lora_table).
        columns: int64 [modules]: where each module's columns of y begin.
        sizes: int64 [modules]: how many they are.
        room: float32 [max(in, out) + sum of ranks], to work in.
    """
    for tile in range(len(tiles)):
        site = carray(pointer(tiles[tile, 0], np.int64), record + 12)[record:]
        for token in range(tiles[tile, 1], tiles[tile, 1] + tiles[tile, 2]):
            if site[8] == FLOAT32:
                _add_delta(y[token], x[token], site, columns, sizes, room, np.float32)
            elif site[8] == FLOAT16:
                _add_delta(y[token], x[token], site, columns, sizes, room, np.int16)
            else:
                _add_delta(y[token], x[token], site, columns, sizes, room, np.uint16)


@compiled
def add_narrow_deltas(
    y: Any, x: Any, tiles: Any, record: int, columns: Any, sizes: Any, room: Any
) -> None:
    """As add_deltas(), where all are bfloat16, the adapters too."""
    for tile in range(len(tiles)):
        site = carray(pointer(tiles[tile, 0], np.int64), record + 12)[record:]
        for token in range(tiles[tile, 1], tiles[tile, 1] + tiles[tile, 2]):
            _add_delta(y[token], x[token], site, columns, sizes, room, np.uint16)


@compiled
def _add_delta(
    y: Any, x: Any, site: Any, columns: Any, sizes: Any, room: Any, element: Any
) -> None:
    """One adapter to one token; element: the type of the adapter's numbers."""
    if site[7] == 0:
        return
    marks, scales = site[4:8], site[9:12]
    down = carray(pointer(site[0], element), (marks[3], len(x)))
    hidden = _shrink(x, down, room)
    for module in range(len(columns)):
        begin, rank = marks[module], marks[module + 1] - marks[module]
        if rank > 0:
            size = sizes[module]
            up = carray(pointer(site[1 + module], element), (rank, size))
            part = y[columns[module] : columns[module] + size]
            _expand(part, hidden[begin : begin + rank], up, from_bits(scales[module]), room)


@compiled
def _shrink(x: Any, down: Any, room: Any) -> Any:
    """The end of the room, with down [ranks, in] times x."""
    num_ranks, num_in = down.shape
    numbers = room[:num_in]
    for index in range(num_in):
        numbers[index] = wide(x[index])
    hidden = room[len(room) - num_ranks :]
    for rank in range(num_ranks):
        row = down[rank]
        total = np.float32(0)
        for index in range(num_in):
            total += finite(row[index]) * numbers[index]
        hidden[rank] = total
    return hidden


@compiled
def _expand(y: Any, hidden: Any, up: Any, scale: Any, room: Any) -> None:
    """Add scale times hidden [rank] times up [rank, out] to y, a row of the room being its sum."""
    rank, size = up.shape
    total = room[:size]
    for index in range(size):
        total[index] = wide(y[index])
    # One after the other: the processor fetches ahead along one row twice as fast as along four.
    for index in range(rank):
        weight, row = hidden[index] * scale, up[index]
        for column in range(size):
            total[column] += weight * finite(row[column])
    for index in range(size):
        y[index] = narrow(total[index], y)


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
