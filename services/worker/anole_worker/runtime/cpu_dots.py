"""The innermost loop of products of bfloat16 on a CPU: some rows of x with 64 rows of weights.

It is written as LLVM's instructions, because no loop in Python is compiled into what it needs: all
sums of a few rows stay in registers while the weights pass by once, in the order in which they are
in memory. AVX512_BF16 multiplies and adds two pairs of numbers at once (Intel's manual,
VDPBF16PS: sums in float32, subnormal numbers taken for 0); elsewhere the numbers are widened.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from anole_worker.runtime.cpu_numbers import compiled

WIDTH = 64
"""Rows of weights that are multiplied at once."""
MOST_ROWS = 6
"""Of x: with WIDTH they take 24 of the 32 registers of AVX-512."""
LANES = 16
_VECTORS = WIDTH // LANES
INT32, INT64 = ir.IntType(32), ir.IntType(64)
INTS = ir.VectorType(INT32, LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"

Add = Callable[[Any, Any, Any], Any]
"""(sums, 16 times the same pair, 16 pairs) -> sums with the products of the pairs."""


class _BFloat(ir.Type):  # type: ignore[misc] # llvmlite says nothing of types
    """LLVM's bfloat, which llvmlite has no class for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def adding(builder: Any) -> Add:
    """How pairs of bfloat16 are multiplied and added up on the processor that is compiled for."""
    known = config.CPU_FEATURES
    features = get_host_cpu_features() if known is None else known
    return _in_hardware(builder) if "+avx512bf16" in features else _widened(builder)


def _in_hardware(builder: Any) -> Add:
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    declared = builder.module.globals.get(_DOT) or ir.Function(
        builder.module, ir.FunctionType(FLOATS, [FLOATS, pairs, pairs]), _DOT
    )

    def add(sums: Any, number: Any, weights: Any) -> Any:
        return builder.call(
            declared, [sums, builder.bitcast(number, pairs), builder.bitcast(weights, pairs)]
        )

    return add


def _widened(builder: Any) -> Add:
    half = ir.Constant(INTS, [16] * LANES)
    upper = ir.Constant(INTS, [0xFFFF0000] * LANES)

    def first(pairs: Any) -> Any:
        return builder.bitcast(builder.shl(pairs, half), FLOATS)

    def second(pairs: Any) -> Any:
        return builder.bitcast(builder.and_(pairs, upper), FLOATS)

    def add(sums: Any, number: Any, weights: Any) -> Any:
        for part in (first, second):
            product = builder.fmul(part(number), part(weights), flags=("contract",))
            sums = builder.fadd(sums, product, flags=("contract",))
        return sums

    return add


def _dots(num_rows: int) -> Any:
    """The loop for so many rows of x."""

    @intrinsic
    def dots(_typing: Any, sums: Any, x: Any, stride: Any, weights: Any, pairs: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
            _generate(builder, num_rows, arguments)
            return context.get_dummy_value()

        return types.void(sums, x, stride, weights, pairs), generate

    return dots


def _generate(builder: Any, num_rows: int, arguments: Sequence[Any]) -> None:
    sums, x, stride, weights, pairs = arguments
    sums = builder.inttoptr(sums, FLOATS.as_pointer())
    weights = builder.inttoptr(weights, INTS.as_pointer())
    rows = [
        builder.inttoptr(builder.add(x, builder.mul(stride, long(row))), INT32.as_pointer())
        for row in range(num_rows)
    ]
    places = [builder.gep(sums, [long(place)]) for place in range(num_rows * _VECTORS)]
    before = [builder.load(place) for place in places]
    entry, loop = builder.block, builder.append_basic_block("pairs")
    end = builder.append_basic_block("end")
    builder.branch(loop)

    builder.position_at_end(loop)
    pair = builder.phi(INT64)
    held = [builder.phi(FLOATS) for _ in places]
    add = adding(builder)
    at = builder.mul(pair, long(_VECTORS))
    loaded = [
        builder.load(builder.gep(weights, [builder.add(at, long(vector))]))
        for vector in range(_VECTORS)
    ]
    after = []
    for row, numbers in enumerate(rows):
        number = sixteen(builder, builder.load(builder.gep(numbers, [pair])))
        for vector, weight in enumerate(loaded):
            after.append(add(held[row * _VECTORS + vector], number, weight))
    following = builder.add(pair, long(1))
    builder.cbranch(builder.icmp_signed("<", following, pairs), loop, end)
    pair.add_incoming(long(0), entry)
    pair.add_incoming(following, loop)
    for sums_held, sums_before, sums_after in zip(held, before, after, strict=True):
        sums_held.add_incoming(sums_before, entry)
        sums_held.add_incoming(sums_after, loop)

    builder.position_at_end(end)
    for place, sums_after in zip(places, after, strict=True):
        builder.store(sums_after, place)


def long(value: int) -> Any:
    """A constant, as addresses are calculated with."""
    return ir.Constant(INT64, value)


def sixteen(builder: Any, number: Any) -> Any:
    """A number in every lane."""
    nothing = ir.Constant(INTS, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(INT32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(INTS, [0] * LANES))


_one, _two, _three, _four, _five, _six = (_dots(rows) for rows in range(1, MOST_ROWS + 1))


@compiled
def add_dots(sums: int, x: int, stride: int, weights: int, pairs: int, num_rows: int) -> None:
    """Add the products of up to MOST_ROWS rows of x with WIDTH rows of weights; all by address.

    Args:
        sums: float32 [num_rows, WIDTH], on 64 bytes.
        x: bfloat16 [num_rows, 2 * pairs].
        stride: bytes from one row of x to the next.
        weights: bfloat16 [pairs, WIDTH, 2], on 64 bytes.
        pairs: at least one.
        num_rows: of x.
    """
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
