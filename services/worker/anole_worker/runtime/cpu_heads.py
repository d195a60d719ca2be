"""The innermost loops of attention in bfloat16 on a CPU, for heads that share keys and values.

Written as LLVM's instructions, as cpu_dots is: each key and value is loaded once for up to
MOST_HEADS heads, and sums stay in registers. Sizes of heads are multiples of DIMS.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anole_worker.runtime.cpu_dots import (
    FLOATS,
    INT32,
    INT64,
    INTS,
    LANES,
    adding,
    long,
    sixteen,
)
from anole_worker.runtime.cpu_numbers import compiled

MOST_HEADS = 4
DIMS = 64
"""That are mixed at once."""
TOGETHER = 4
"""Tokens that are scored at once: scores have room for a multiple of it."""
PAIRED = 2 * LANES
"""Dims in a register. Mixed, those with even numbers come first, then the others."""
_QUAD = ir.VectorType(ir.FloatType(), TOGETHER)
_BYTES = 64
"""Of a register."""


class _Loop:
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


def _each(make: Callable[[Any, int, Sequence[Any]], None], num_heads: int) -> Any:
    @intrinsic
    def call(
        _typing: Any, sums: Any, stride: Any, one: Any, two: Any, size: Any, slots: Any, count: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
            make(builder, num_heads, arguments)
            return context.get_dummy_value()

        return types.void(sums, stride, one, two, size, slots, count), generate

    return call


def _score(builder: Any, num_heads: int, arguments: Sequence[Any]) -> None:
    scores, stride, queries, keys, size, slots, count = arguments
    tokens = builder.inttoptr(slots, INT64.as_pointer())
    lowest = ir.Constant(_QUAD, [-3.0e38] * TOGETHER)
    outer = _Loop(builder, count, TOGETHER, [lowest] * num_heads)
    key_bytes = builder.mul(size, long(2))
    last = builder.sub(count, long(1))
    rows = []
    for token in range(TOGETHER):
        at = builder.add(outer.index, long(token))
        at = builder.select(builder.icmp_signed("<", at, last), at, last)
        slot = builder.load(builder.gep(tokens, [at]))
        rows.append(builder.add(keys, builder.mul(slot, key_bytes)))
    nothing = [ir.Constant(FLOATS, None)] * (num_heads * TOGETHER)
    inner = _Loop(builder, key_bytes, _BYTES, nothing)
    loaded = [_load(builder, INTS, builder.add(row, inner.index)) for row in rows]
    add, sums = adding(builder), []
    for head in range(num_heads):
        place = builder.add(queries, builder.mul(key_bytes, long(head)))
        query = _load(builder, INTS, builder.add(place, inner.index))
        sums += [
            add(inner.sums[head * TOGETHER + token], query, key) for token, key in enumerate(loaded)
        ]
    inner.end(sums)
    largest = []
    for head in range(num_heads):
        found = _totals(builder, sums[head * TOGETHER : (head + 1) * TOGETHER])
        place = builder.add(scores, builder.mul(stride, long(head)))
        place = builder.add(place, builder.mul(outer.index, long(4)))
        _store(builder, found, place)
        before = outer.sums[head]
        largest.append(builder.select(builder.fcmp_ordered(">", found, before), found, before))
    outer.end(largest)
    for head, found in enumerate(largest):
        place = builder.add(scores, builder.mul(stride, long(head)))
        _store(builder, found, builder.sub(place, long(4 * TOGETHER)))


def _totals(builder: Any, sums: Sequence[Any]) -> Any:
    """Each one's lanes added up: [TOGETHER]."""
    first, second, third, fourth = sums
    ahead = _crossed(builder, first, second, 1)
    behind = _crossed(builder, third, fourth, 1)
    crossed = _crossed(builder, ahead, behind, 2)
    parts = [
        builder.shuffle_vector(crossed, crossed, _order(range(begin, begin + TOGETHER)))
        for begin in range(0, LANES, TOGETHER)
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


def _mix(builder: Any, num_heads: int, arguments: Sequence[Any]) -> None:
    weights, stride, sums, values, size, slots, count = arguments
    tokens = builder.inttoptr(slots, INT64.as_pointer())
    per_head = DIMS // LANES
    loop = _Loop(builder, count, 1, [ir.Constant(FLOATS, None)] * (num_heads * per_head))
    slot = builder.load(builder.gep(tokens, [loop.index]))
    row = builder.add(values, builder.mul(slot, builder.mul(size, long(2))))
    wide = []
    for part in range(DIMS // PAIRED):
        pairs = _load(builder, INTS, builder.add(row, long(part * _BYTES)))
        shifted = builder.shl(pairs, ir.Constant(INTS, [16] * LANES))
        upper = builder.and_(pairs, ir.Constant(INTS, [0xFFFF0000] * LANES))
        wide += [builder.bitcast(shifted, FLOATS), builder.bitcast(upper, FLOATS)]
    after = []
    for head in range(num_heads):
        place = builder.add(weights, builder.mul(stride, long(head)))
        place = builder.add(place, builder.mul(loop.index, long(4)))
        bits = builder.load(builder.inttoptr(place, INT32.as_pointer()))
        weight = builder.bitcast(sixteen(builder, bits), FLOATS)
        for index, value in enumerate(wide):
            product = builder.fmul(weight, value, flags=("contract",))
            before = loop.sums[head * per_head + index]
            after.append(builder.fadd(before, product, flags=("contract",)))
    loop.end(after)
    for index, found in enumerate(after):
        head, part = divmod(index, per_head)
        place = builder.add(sums, builder.mul(size, long(4 * head)))
        _store(builder, found, builder.add(place, long(part * _BYTES)))


def _order(lanes: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(INT32, len(lanes)), list(lanes))


def _load(builder: Any, kind: Any, address: Any) -> Any:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 2
    return loaded


def _store(builder: Any, value: Any, address: Any) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 4


_score_one, _score_two, _score_three, _score_four = (
    _each(_score, heads) for heads in range(1, MOST_HEADS + 1)
)
_mix_one, _mix_two, _mix_three, _mix_four = (
    _each(_mix, heads) for heads in range(1, MOST_HEADS + 1)
)


@compiled
def score(
    num_heads: int,
    scores: int,
    stride: int,
    queries: int,
    keys: int,
    size: int,
    slots: int,
    count: int,
) -> None:
    """What queries times keys is, for up to MOST_HEADS heads; all by address.

    Args:
        num_heads: how many.
        scores: float32, a row a head. In front of each row go TOGETHER numbers, the largest of
            which is the row's; behind it there is room for a multiple of TOGETHER.
        stride: bytes from one head's scores to the next.
        queries: bfloat16 [num_heads, size].
        keys: bfloat16 [all slots, size].
        size: of a head.
        slots: int64 [count].
        count: of tokens, at least one.
    """
    if num_heads == 1:
        _score_one(scores, stride, queries, keys, size, slots, count)
    elif num_heads == 2:  # noqa: PLR2004
        _score_two(scores, stride, queries, keys, size, slots, count)
    elif num_heads == 3:  # noqa: PLR2004
        _score_three(scores, stride, queries, keys, size, slots, count)
    else:
        _score_four(scores, stride, queries, keys, size, slots, count)


@compiled
def mix(
    num_heads: int,
    weights: int,
    stride: int,
    sums: int,
    values: int,
    size: int,
    slots: int,
    count: int,
) -> None:
    """DIMS of the values by their weights, for up to MOST_HEADS heads; all by address.

    Args:
        num_heads: how many.
        weights: float32, a row a head.
        stride: bytes from one head's weights to the next.
        sums: float32 [num_heads, size], where the first head's dims begin; see PAIRED.
        values: bfloat16 [all slots, size], where the first slot's dims begin.
        size: of a head.
        slots: int64 [count].
        count: of tokens, at least one.
    """
    if num_heads == 1:
        _mix_one(weights, stride, sums, values, size, slots, count)
    elif num_heads == 2:  # noqa: PLR2004
        _mix_two(weights, stride, sums, values, size, slots, count)
    elif num_heads == 3:  # noqa: PLR2004
        _mix_three(weights, stride, sums, values, size, slots, count)
    else:
        _mix_four(weights, stride, sums, values, size, slots, count)
