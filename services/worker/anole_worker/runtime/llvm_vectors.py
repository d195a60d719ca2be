"""What loops of bfloat16 are made of that are written as LLVM's instructions.

No loop in Python is compiled into what these need: sums that stay in registers while numbers pass
by once, and AVX512_BF16, which multiplies and adds two pairs at once (Intel's manual, VDPBF16PS:
sums in float32, subnormal numbers taken for 0). Where a processor has not that, numbers are
widened to float32.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import config
from numba.core.codegen import get_host_cpu_features

LANES = 16
VECTOR_BYTES = 64
QUAD = 4
INT32, INT64 = ir.IntType(32), ir.IntType(64)
INTS = ir.VectorType(INT32, LANES)
FLOATS = ir.VectorType(ir.FloatType(), LANES)
ZEROS = ir.Constant(FLOATS, None)
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


def _features() -> str:
    known = config.CPU_FEATURES
    return str(get_host_cpu_features() if known is None else known)


HAS_DOTS = "+avx512bf16" in _features()
"""Whether the processor that is compiled for multiplies pairs of bfloat16."""
HAS_WHOLE_VECTORS = "+avx512f" in _features()
"""Whether LANES numbers are one register, of which there are 32; else they are two of 16, or so."""


def adding(builder: Any) -> Add:
    """How pairs of bfloat16 are multiplied and added up."""
    return _in_hardware(builder) if HAS_DOTS else _widened(builder)


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
    def add(sums: Any, number: Any, weights: Any) -> Any:
        for one, other in zip(halves(builder, number), halves(builder, weights), strict=True):
            product = builder.fmul(one, other, flags=("contract",))
            sums = builder.fadd(sums, product, flags=("contract",))
        return sums

    return add


def halves(builder: Any, pairs: Any) -> tuple[Any, Any]:
    """The first numbers of 16 pairs, and the second ones, as float32."""
    first = builder.shl(pairs, ir.Constant(INTS, [16] * LANES))
    second = builder.and_(pairs, ir.Constant(INTS, [0xFFFF0000] * LANES))
    return builder.bitcast(first, FLOATS), builder.bitcast(second, FLOATS)


class Loop:
    """LLVM's instructions for a loop from 0 by steps to a count above 0, with sums that it keeps.

    Its body is what is built before end().
    """

    def __init__(self, builder: Any, count: Any, step: int, sums: Sequence[Any]) -> None:
        """sums: what they are at first."""
        self._builder, self._count, self._step, self._first = builder, count, step, sums
        self._entry = builder.block
        self._block = builder.append_basic_block("loop")
        builder.branch(self._block)
        builder.position_at_end(self._block)
        self.index = builder.phi(INT64)
        self.sums = [builder.phi(one.type) for one in sums]

    def end(self, sums: Sequence[Any]) -> None:
        """sums: what they are now; go on behind the loop."""
        builder, last = self._builder, self._builder.block
        after = builder.add(self.index, long(self._step))
        behind = builder.append_basic_block("behind")
        builder.cbranch(builder.icmp_signed("<", after, self._count), self._block, behind)
        self.index.add_incoming(long(0), self._entry)
        self.index.add_incoming(after, last)
        for own, first, following in zip(self.sums, self._first, sums, strict=True):
            own.add_incoming(first, self._entry)
            own.add_incoming(following, last)
        builder.position_at_end(behind)


def totals(builder: Any, sums: Sequence[Any]) -> Any:
    """Each one's lanes added up: [QUAD]."""
    first, second, third, fourth = sums
    ahead = _crossed(builder, first, second, 1)
    behind = _crossed(builder, third, fourth, 1)
    crossed = _crossed(builder, ahead, behind, 2)
    parts = [
        builder.shuffle_vector(crossed, crossed, _order(range(begin, begin + QUAD)))
        for begin in range(0, LANES, QUAD)
    ]
    return builder.fadd(builder.fadd(parts[0], parts[1]), builder.fadd(parts[2], parts[3]))


def _crossed(builder: Any, one: Any, other: Any, width: int) -> Any:
    """Each one's neighbouring groups of so many lanes added up, by turns."""
    near: list[int] = []
    far: list[int] = []
    for begin in range(0, LANES, 2 * width):
        for source in (0, LANES):
            near += range(source + begin, source + begin + width)
            far += range(source + begin + width, source + begin + 2 * width)
    return builder.fadd(
        builder.shuffle_vector(one, other, _order(near)),
        builder.shuffle_vector(one, other, _order(far)),
    )


def load(builder: Any, kind: Any, address: Any) -> Any:
    """From where it may be on no boundary."""
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 2
    return loaded


def store(builder: Any, value: Any, address: Any) -> None:
    """Floats, to where they may be on no boundary but a float's."""
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


def long(value: int) -> Any:
    """A constant, as addresses are calculated with."""
    return ir.Constant(INT64, value)


def sixteen(builder: Any, number: Any) -> Any:
    """A number in every lane."""
    nothing = ir.Constant(INTS, ir.Undefined)
    one = builder.insert_element(nothing, number, ir.Constant(INT32, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(INTS, [0] * LANES))


def at_most(builder: Any, number: Any, bound: Any) -> Any:
    """The smaller one."""
    return builder.select(builder.icmp_signed("<", number, bound), number, bound)


def _order(lanes: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))
