"""Loops over a few rows that torch does not do well on a CPU, compiled by numba, without the GIL.

They read and write float32, bfloat16 as its bits in uint16 and float16 as its bits in int16, and
add up in float32. Each row is computed by itself and always in the same order, so what comes out
does not depend on its company.
The compiled code is kept beside this file, or in numba's own cache folder where that cannot be
written.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

_INT16, _INT32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
_HALF, _ROUNDING = 16, 0x7FFF
FLOAT32, FLOAT16, BFLOAT16 = 4, 3, 2
"""Types of numbers behind an address, as arguments name them."""
_SQUARE = 32
"""Rows and columns that are transposed at a time."""


@intrinsic
def _pointer(_typing: Any, address: Any, element: Any) -> Any:
    """An address as a pointer to elements of that type."""
    result = types.CPointer(element.dtype)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(address, element), generate


@intrinsic
def _from_bits(_typing: Any, bits: Any) -> Any:
    """The float32 whose bits are the lower half of an int64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], _INT32), _FLOAT)

    return types.float32(bits), generate


@intrinsic
def _wide(_typing: Any, element: Any) -> Any:
    """An element as float32."""
    return types.float32(element), _widening(element, _from_float16)


@intrinsic
def _finite(_typing: Any, element: Any) -> Any:
    """As _wide, but for infinities and what is no number, as which no adapter's weights pass."""
    return types.float32(element), _widening(element, _from_finite_float16)


def _widening(element: Any, from_float16: Callable[[Any, Any], Any]) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if element == types.float32:
            return arguments[0]
        if element == types.int16:
            return from_float16(builder, arguments[0])
        bits = builder.shl(builder.zext(arguments[0], _INT32), ir.Constant(_INT32, _HALF))
        return builder.bitcast(bits, _FLOAT)

    return generate


def _from_finite_float16(builder: Any, element: Any) -> Any:
    """The exponent is moved by a product, which also makes subnormal numbers normal ones."""
    bits = builder.shl(builder.sext(element, _INT32), ir.Constant(_INT32, 13))
    # Between the sign and the exponent there are three copies of the sign.
    bits = builder.and_(bits, ir.Constant(_INT32, ~0x70000000))
    return builder.fmul(builder.bitcast(bits, _FLOAT), ir.Constant(_FLOAT, 2.0**112))


def _from_float16(builder: Any, element: Any) -> Any:
    int16 = element.type
    magnitude = builder.and_(element, ir.Constant(int16, 0x7FFF))
    is_number = builder.icmp_unsigned("<", magnitude, ir.Constant(int16, 0x7C00))
    exponent = builder.select(is_number, ir.Constant(_INT32, 0), ir.Constant(_INT32, 0x7F800000))
    bits = builder.bitcast(_from_finite_float16(builder, element), _INT32)
    return builder.bitcast(builder.or_(bits, exponent), _FLOAT)


@intrinsic
def _narrow(_typing: Any, number: Any, like: Any) -> Any:
    """A float32 as an element of the array's type, rounded to the nearest, ties to even."""
    element = like.dtype

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if element == types.float32:
            return arguments[0]
        if element == types.int16:
            return _to_float16(builder, arguments[0])
        bits = builder.bitcast(arguments[0], _INT32)
        half = ir.Constant(_INT32, _HALF)
        is_odd = builder.and_(builder.lshr(bits, half), ir.Constant(_INT32, 1))
        rounded = builder.add(bits, builder.add(is_odd, ir.Constant(_INT32, _ROUNDING)))
        return builder.trunc(builder.lshr(rounded, half), _INT16)

    return element(number, like), generate


def _to_float16(builder: Any, number: Any) -> Any:
    """A sum with a half leaves a subnormal number's bits, rounded, in the last places."""

    def constant(value: int) -> Any:
        return ir.Constant(_INT32, value)

    bits = builder.bitcast(number, _INT32)
    magnitude = builder.and_(bits, constant(0x7FFFFFFF))
    half = builder.fadd(builder.bitcast(magnitude, _FLOAT), ir.Constant(_FLOAT, 0.5))
    tiny = builder.sub(builder.bitcast(half, _INT32), constant(0x3F000000))
    is_odd = builder.and_(builder.lshr(magnitude, constant(13)), constant(1))
    rounded = builder.add(builder.add(magnitude, is_odd), constant(0xFFF - (112 << 23)))
    result = builder.lshr(rounded, constant(13))
    is_tiny = builder.icmp_unsigned("<", magnitude, constant(0x38800000))
    result = builder.select(is_tiny, tiny, result)
    is_large = builder.icmp_unsigned(">=", magnitude, constant(0x47800000))
    result = builder.select(is_large, constant(0x7C00), result)
    is_no_number = builder.icmp_unsigned(">", magnitude, constant(0x7F800000))
    result = builder.select(is_no_number, constant(0x7E00), result)
    sign = builder.and_(builder.lshr(bits, constant(_HALF)), constant(0x8000))
    return builder.trunc(builder.or_(result, sign), _INT16)


_compiled = njit(nogil=True, fastmath={"contract", "reassoc", "nsz"}, cache=True)


@_compiled
def normalise(normed: Any, x: Any, weight: Any, epsilon: float) -> None:
    """Normed = x / sqrt(mean(x^2) + epsilon) * weight, row by row; all [rows, size]."""
    rows, size = x.shape
    for row in range(rows):
        total = np.float32(0)
        for index in range(size):
            number = _wide(x[row, index])
            total += number * number
        scale = np.float32(1) / np.sqrt(total / np.float32(size) + np.float32(epsilon))
        for index in range(size):
            number = _wide(x[row, index]) * scale * _wide(weight[index])
            normed[row, index] = _narrow(number, normed)


@_compiled
def refine(logits: Any, x: Any, weight: Any, margin: float) -> None:
    """Compute the logits again that are within a margin of their row's largest, in float32.

    logits are float32 [rows, vocab], rounded to bfloat16 by the product that made them, so that
    among large ones many are equal. x is [rows, hidden], weight [vocab, hidden].
    """
    rows, size = logits.shape
    hidden = x.shape[1]
    for row in range(rows):
        largest = logits[row].max()
        for token in range(size):
            if logits[row, token] >= largest - np.float32(margin):
                total = np.float32(0)
                for index in range(hidden):
                    total += _wide(x[row, index]) * _wide(weight[token, index])
                logits[row, token] = total


@_compiled
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
        site = carray(_pointer(tiles[tile, 0], np.int64), record + 12)[record:]
        if site[7] == 0:
            continue
        for token in range(tiles[tile, 1], tiles[tile, 1] + tiles[tile, 2]):
            if site[8] == FLOAT32:
                _add_delta(y[token], x[token], site, columns, sizes, room, np.float32)
            elif site[8] == FLOAT16:
                _add_delta(y[token], x[token], site, columns, sizes, room, np.int16)
            else:
                _add_delta(y[token], x[token], site, columns, sizes, room, np.uint16)


@_compiled
def _add_delta(
    y: Any, x: Any, site: Any, columns: Any, sizes: Any, room: Any, element: Any
) -> None:
    """One adapter to one token; element: the type of the adapter's numbers."""
    marks, scales = site[4:8], site[9:12]
    down = carray(_pointer(site[0], element), (marks[3], len(x)))
    hidden = _shrink(x, down, room)
    for module in range(len(columns)):
        begin, rank = marks[module], marks[module + 1] - marks[module]
        if rank > 0:
            size = sizes[module]
            up = carray(_pointer(site[1 + module], element), (rank, size))
            part = y[columns[module] : columns[module] + size]
            _expand(part, hidden[begin : begin + rank], up, _from_bits(scales[module]), room)


@_compiled
def _shrink(x: Any, down: Any, room: Any) -> Any:
    """The end of the room, with down [ranks, in] times x."""
    num_ranks, num_in = down.shape
    wide = room[:num_in]
    for index in range(num_in):
        wide[index] = _wide(x[index])
    hidden = room[len(room) - num_ranks :]
    for rank in range(num_ranks):
        row = down[rank]
        total = np.float32(0)
        for index in range(num_in):
            total += _finite(row[index]) * wide[index]
        hidden[rank] = total
    return hidden


@_compiled
def _expand(y: Any, hidden: Any, up: Any, scale: Any, room: Any) -> None:
    """Add scale times hidden [rank] times up [rank, out] to y, a row of the room being its sum."""
    rank, size = up.shape
    total = room[:size]
    for index in range(size):
        total[index] = _wide(y[index])
    # One after the other: the processor fetches ahead along one row twice as fast as along four.
    for index in range(rank):
        weight, row = hidden[index] * scale, up[index]
        for column in range(size):
            total[column] += weight * _finite(row[column])
    for index in range(size):
        y[index] = _narrow(total[index], y)


@_compiled
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
            tensor = carray(_pointer(address, np.float32), size)
            total += _unpack(place, tensor, scale, is_turned)
        elif kind == FLOAT16:
            halves = carray(_pointer(address, np.int16), size)
            total += _unpack(place, halves, scale, is_turned)
        else:
            shorts = carray(_pointer(address, np.uint16), size)
            total += _unpack(place, shorts, scale, is_turned)
    return total


@_compiled
def _unpack(place: Any, tensor: Any, scale: Any, is_turned: bool) -> Any:
    rows, columns = tensor.shape
    if is_turned:
        return _turn(place, tensor, scale)
    total = np.float32(0)
    for row in range(rows):
        part, numbers = place[row * columns : (row + 1) * columns], tensor[row]
        for column in range(columns):
            part[column] = _narrow(_wide(numbers[column]) * scale, place)
            total += _wide(part[column])
    return total


@_compiled
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
                    part[row] = _narrow(_wide(line[row]) * scale, place)
                    total += _wide(part[row])
    return total
