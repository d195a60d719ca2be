"""Adds adapters' deltas to projections on a CPU, compiled as cpu_kernels' loops.

A few tokens of an adapter are taken one by one: reading its weights is what costs, and the
processor fetches them ahead best along one row. Many tokens share what is loaded; in bfloat16 they
are multiplied as cpu_products does.
"""

from typing import Any

import numpy as np
from numba import carray

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_dots import WIDTH, cross, operand
from anole_worker.runtime.cpu_numbers import (
    FLOAT16,
    FLOAT32,
    finite,
    from_bits,
    narrow,
    pointer,
    wide,
)
from anole_worker.runtime.cpu_products import PANEL, add_tiles
from anole_worker.runtime.llvm_vectors import QUAD, VECTOR_BYTES

_MOST_SINGLE = 16
"""Tokens of an adapter in a step that are taken one by one: up to so many, none feels the others.
"""


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
        begin, end = tiles[tile, 1], tiles[tile, 1] + tiles[tile, 2]
        if end - begin > _MOST_SINGLE and x.shape[1] * 2 % VECTOR_BYTES == 0:
            for first in range(begin, end, PANEL):
                last = min(first + PANEL, end)
                _add_together(y[first:last], x[first:last], site, columns, sizes)
            continue
        for token in range(begin, end):
            _add_delta(y[token], x[token], site, columns, sizes, room, np.uint16)


@compiled
def _add_together(y: Any, x: Any, site: Any, columns: Any, sizes: Any) -> None:
    """One adapter to at most PANEL tokens, in bfloat16."""
    if site[7] == 0:
        return
    marks, scales = site[4:8], site[9:12]
    hidden = _shrink_together(x, site[0], marks[3])
    for module in range(len(columns)):
        begin, rank = marks[module], marks[module + 1] - marks[module]
        if rank > 0:
            up = carray(pointer(site[1 + module], np.uint16), (rank, sizes[module]))
            scaled = _scaled(hidden, len(x), begin, rank, from_bits(scales[module]))
            _expand_together(y, columns[module], scaled, up)


@compiled
def _shrink_together(x: Any, down: int, num_ranks: int) -> Any:
    """What down [ranks, in] makes of x: float32, room for [tokens, ranks] and more."""
    tokens, num_bytes = len(x), x.shape[1] * 2
    width = (num_ranks + QUAD - 1) // QUAD * QUAD
    hidden = np.empty(((tokens + QUAD - 1) // QUAD * QUAD, width), dtype=np.float32)
    for rank in range(0, num_ranks, QUAD):
        weights, count = down + rank * num_bytes, min(QUAD, num_ranks - rank)
        for token in range(0, tokens, QUAD):
            cross(
                hidden[token, rank:].ctypes.data,
                width * 4,
                x[token].ctypes.data,
                x.strides[0],
                min(QUAD, tokens - token),
                weights,
                count,
                num_bytes,
            )
    return hidden


@compiled
def _scaled(hidden: Any, tokens: int, begin: int, rank: int, scale: Any) -> Any:
    """A module's part as bfloat16 [tokens, rank], with one of zeros where rank is odd."""
    scaled = np.zeros((tokens, rank + rank % 2), dtype=np.uint16)
    for token in range(tokens):
        own, part = scaled[token], hidden[token, begin : begin + rank]
        for index in range(rank):
            own[index] = narrow(part[index] * scale, scaled)
    return scaled


@compiled
def _expand_together(y: Any, first: int, hidden: Any, up: Any) -> None:
    """Add hidden [tokens, rank] times up [rank, out] to columns of y, from the first one on."""
    tokens, pairs, size = len(y), hidden.shape[1] // 2, up.shape[1]
    numbers = operand(hidden)
    sums = np.empty((tokens, WIDTH), dtype=np.float32)
    weights = np.zeros((pairs, WIDTH * 2), dtype=np.uint16)
    for column in range(0, size, WIDTH):
        width = min(WIDTH, size - column)
        begin, end = first + column, first + column + width
        for pair in range(pairs):
            _interleave(weights[pair], up[2 * pair : 2 * pair + 2, column : column + width])
        for token in range(tokens):
            part, total = y[token][begin:end], sums[token]
            for place in range(width):
                total[place] = wide(part[place])
        place, those = numbers.ctypes.data, weights.ctypes.data
        add_tiles(sums.ctypes.data, place, numbers.strides[0], those, pairs, tokens)
        for token in range(tokens):
            part, total = y[token][begin:end], sums[token]
            for place in range(width):
                part[place] = narrow(total[place], y)


@compiled
def _interleave(pairs: Any, rows: Any) -> None:
    """Put a row's numbers, or two rows' by turns, side by side; what else there was stays."""
    one, other = rows[0], rows[len(rows) - 1]
    if len(rows) == 1:
        for place in range(len(one)):
            pairs[2 * place] = one[place]
    else:
        for place in range(len(one)):
            pairs[2 * place] = one[place]
            pairs[2 * place + 1] = other[place]


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
