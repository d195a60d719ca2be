"""The innermost loops of products of bfloat16 on a CPU, written as LLVM's instructions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_fetching import fetch
from anole_worker.runtime.cpu_numbers import wide
from anole_worker.runtime.llvm_vectors import (
    FLOATS,
    HAS_DOTS,
    HAS_WHOLE_VECTORS,
    INT32,
    INTS,
    LANES,
    QUAD,
    VECTOR_BYTES,
    ZEROS,
    Loop,
    adding,
    at_most,
    halves,
    load,
    long,
    sixteen,
    store,
    totals,
)

WIDTH = 64
"""Rows of weights that are multiplied at once."""
MOST_ROWS = 6 if HAS_DOTS else 5
"""Of x: with WIDTH they take most of the 32 registers of AVX-512."""
PAIR_BYTES = 4 if HAS_DOTS else 8
"""Of two numbers of x, which are float32 where the processor does not multiply bfloat16."""
_VECTORS = WIDTH // LANES
_BLOCK_BYTES = WIDTH * 4
"""Of a pair of each of the weights."""
_PIECE, _AHEAD = 8, 32
"""Pairs that are taken at once where registers do not hold the sums of all WIDTH, and how far ahead
others are fetched meanwhile: the processor does not see by itself what comes next."""


def _dots(num_rows: int) -> Any:
    """The loop for so many rows of x."""

    @intrinsic
    def dots(_typing: Any, sums: Any, x: Any, stride: Any, weights: Any, pairs: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
            _multiply(builder, num_rows, arguments)
            return context.get_dummy_value()

        return types.void(sums, x, stride, weights, pairs), generate

    return dots


def _multiply(builder: Any, num_rows: int, arguments: Sequence[Any]) -> None:
    sums, x, stride, weights, pairs = arguments
    rows = [builder.add(x, builder.mul(stride, long(row))) for row in range(num_rows)]
    vectors = _at_once(num_rows)
    for first in range(0, _VECTORS, vectors):
        places = [
            builder.add(sums, long((row * _VECTORS + first + vector) * VECTOR_BYTES))
            for row in range(num_rows)
            for vector in range(vectors)
        ]
        loop = Loop(builder, pairs, 1, [load(builder, FLOATS, place) for place in places])
        begin = builder.add(weights, builder.mul(loop.index, long(_BLOCK_BYTES)))
        loaded = [
            load(builder, INTS, builder.add(begin, long(vector * VECTOR_BYTES)))
            for vector in range(first, first + vectors)
        ]
        after = list(loop.sums)
        for part, of_pairs in enumerate(_parts(builder, loaded)):
            for row, address in enumerate(rows):
                place = builder.add(address, builder.mul(loop.index, long(PAIR_BYTES)))
                bits = load(builder, INT32, builder.add(place, long(4 * part)))
                number = sixteen(builder, bits)
                for index, weight in enumerate(of_pairs, row * vectors):
                    after[index] = _added(builder, after[index], number, weight)
        loop.end(after)
        for place, found in zip(places, after, strict=True):
            store(builder, found, place)


def _parts(builder: Any, loaded: Sequence[Any]) -> Sequence[Sequence[Any]]:
    """What is multiplied with one number of x after the other: whole pairs, or their halves."""
    if HAS_DOTS:
        return [loaded]
    return list(zip(*(halves(builder, pairs) for pairs in loaded), strict=True))


def _added(builder: Any, sums: Any, number: Any, weights: Any) -> Any:
    if HAS_DOTS:
        return adding(builder)(sums, number, weights)
    product = builder.fmul(builder.bitcast(number, FLOATS), weights, flags=("contract",))
    return builder.fadd(sums, product, flags=("contract",))


def _at_once(num_rows: int) -> int:
    """Vectors of a row's sums that registers hold for so many rows."""
    if HAS_WHOLE_VECTORS:
        return _VECTORS
    return {1: 4, 2: 2}.get(num_rows, 1)


_one, _two, _three, _four, _five, _six = map(_dots, range(1, 7))


@compiled
def add_dots(sums: int, x: int, stride: int, weights: int, pairs: int, num_rows: int) -> None:
    """Add the products of up to MOST_ROWS rows of x with WIDTH rows of weights; all by address.

    Args:
        sums: float32 [num_rows, WIDTH], on 64 bytes.
        x: [num_rows, 2 * pairs], as operand() gives it.
        stride: bytes from one row of x to the next.
        weights: bfloat16 [pairs, WIDTH, 2], on 64 bytes.
        pairs: at least one.
        num_rows: of x.
    """
    if HAS_WHOLE_VECTORS or num_rows == 1:
        _add_dots(sums, x, stride, weights, pairs, num_rows)
        return
    for at in range(0, pairs, _PIECE):
        part = min(_PIECE, pairs - at)
        fetch(weights + (at + _AHEAD) * _BLOCK_BYTES, part * _BLOCK_BYTES)
        place, those = x + at * PAIR_BYTES, weights + at * _BLOCK_BYTES
        _add_dots(sums, place, stride, those, part, num_rows)


@compiled
def _add_dots(sums: int, x: int, stride: int, weights: int, pairs: int, num_rows: int) -> None:
    if num_rows == 1:
        _one(sums, x, stride, weights, pairs)
    elif num_rows == 2:  # noqa: PLR2004
        _two(sums, x, stride, weights, pairs)
    elif num_rows == 3:  # noqa: PLR2004
        _three(sums, x, stride, weights, pairs)
    elif num_rows == 4:  # noqa: PLR2004
        _four(sums, x, stride, weights, pairs)
    elif num_rows == 5:  # noqa: PLR2004
        _five(sums, x, stride, weights, pairs)
    else:
        _six(sums, x, stride, weights, pairs)


def _kept(x: Any) -> Any:
    return x


def _widened(x: Any) -> Any:
    result = np.empty(x.shape, dtype=np.float32)
    for row in range(len(x)):
        ours, theirs = result[row], x[row]
        for index in range(len(ours)):
            ours[index] = wide(theirs[index])
    return result


operand = compiled(_kept if HAS_DOTS else _widened)
"""bfloat16 [rows, in] as add_dots() takes it."""


@intrinsic
def cross(
    _typing: Any,
    sums: Any,
    stride: Any,
    x: Any,
    x_stride: Any,
    num_rows: Any,
    weights: Any,
    num_weights: Any,
    num_bytes: Any,
) -> Any:
    """Up to QUAD rows of x times up to QUAD rows of weights; all by address.

    Args:
        sums: float32 [QUAD, QUAD]: what they are times each other; the rest means nothing.
        stride: bytes from one of its rows to the next.
        x: bfloat16 [num_rows, num_bytes / 2].
        x_stride: bytes from one of its rows to the next.
        num_rows: of x.
        weights: bfloat16 [num_weights, num_bytes / 2].
        num_weights: of the weights.
        num_bytes: of a row, a multiple of VECTOR_BYTES.
    """

    def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        _cross(builder, arguments)
        return context.get_dummy_value()

    signature = types.void(sums, stride, x, x_stride, num_rows, weights, num_weights, num_bytes)
    return signature, generate


def _cross(builder: Any, arguments: Sequence[Any]) -> None:
    sums, stride, x, x_stride, num_rows, weights, num_weights, num_bytes = arguments

    def rows_of(address: Any, apart: Any, count: Any) -> list[Any]:
        last = builder.sub(count, long(1))
        indices = [at_most(builder, long(row), last) for row in range(QUAD)]
        return [builder.add(address, builder.mul(index, apart)) for index in indices]

    rows, others = rows_of(x, x_stride, num_rows), rows_of(weights, num_bytes, num_weights)
    loop = Loop(builder, num_bytes, VECTOR_BYTES, [ZEROS] * (QUAD * QUAD))
    loaded = [load(builder, INTS, builder.add(row, loop.index)) for row in others]
    add, after = adding(builder), []
    for row, address in enumerate(rows):
        numbers = load(builder, INTS, builder.add(address, loop.index))
        for other, weight in enumerate(loaded):
            after.append(add(loop.sums[row * QUAD + other], numbers, weight))
    loop.end(after)
    for row in range(QUAD):
        found = totals(builder, after[row * QUAD : (row + 1) * QUAD])
        store(builder, found, builder.add(sums, builder.mul(stride, long(row))))
