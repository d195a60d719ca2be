"""Numbers as compiled loops read and write them: float32, and types of 16 bits as their bits.

float32 is itself, bfloat16 its bits in uint16 and float16 its bits in int16; loops add up in
float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anole_worker.runtime.compiling import compiled

_INT16, _INT32, _FLOAT = ir.IntType(16), ir.IntType(32), ir.FloatType()
_HALF, _ROUNDING = 16, 0x7FFF
FLOAT32, FLOAT16, BFLOAT16 = 4, 3, 2
"""Types of numbers behind an address, as arguments name them."""


@intrinsic
def pointer(_typing: Any, address: Any, element: Any) -> Any:
    """An address as a pointer to elements of that type."""
    result = types.CPointer(element.dtype)

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(result))

    return result(address, element), generate


@intrinsic
def from_bits(_typing: Any, bits: Any) -> Any:
    """The float32 whose bits are the lower half of an int64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], _INT32), _FLOAT)

    return types.float32(bits), generate


@intrinsic
def power_of_two(_typing: Any, exponent: Any) -> Any:
    """2 to a whole number between -126 and 127, which is a float32, too."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        biased = builder.add(builder.fptosi(arguments[0], _INT32), ir.Constant(_INT32, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(_INT32, 23)), _FLOAT)

    return types.float32(exponent), generate


@intrinsic
def wide(_typing: Any, element: Any) -> Any:
    """An element as float32."""
    return types.float32(element), _widening(element, _from_float16)


@intrinsic
def finite(_typing: Any, element: Any) -> Any:
    """As wide, but for infinities and what is no number, as which no adapter's weights pass."""
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
def narrow(_typing: Any, number: Any, like: Any) -> Any:
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


@compiled
def exp(x: Any) -> Any:
    """The exponential of what is not above 0, as Cephes has it: a loop over this is vectorised."""
    x = np.float32(-87) if x < np.float32(-87) else x  # noqa: FURB136 - keeps what is no number
    power = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    x = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4) * x + np.float32(1.3981999507e-3)
    y = y * x + np.float32(8.3334519073e-3)
    y = y * x + np.float32(4.1665795894e-2)
    y = y * x + np.float32(1.6666665459e-1)
    y = y * x + np.float32(5.0000001201e-1)
    return (y * x * x + x + np.float32(1)) * power_of_two(power)
