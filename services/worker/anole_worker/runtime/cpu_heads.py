"""The innermost loops of attention in bfloat16 on a CPU, for heads that share keys and values.

Written as LLVM's instructions: each key and value is loaded once for up to
MOST_HEADS heads, and sums stay in registers. Sizes of heads are multiples of DIMS.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.llvm_vectors import (
    FLOATS,
    INT32,
    INT64,
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

MOST_HEADS = 4
DIMS = 64
"""That are mixed at once."""
PAIRED = 2 * LANES
"""Dims in a register. Mixed, those with even numbers come first, then the others."""


def _scoring(num_heads: int) -> Any:
    @intrinsic
    def call(
        _typing: Any,
        scores: Any,
        largest: Any,
        stride: Any,
        queries: Any,
        keys: Any,
        size: Any,
        slots: Any,
        count: Any,
    ) -> Any:
        signature = types.void(scores, largest, stride, queries, keys, size, slots, count)
        return signature, _generating(_score, num_heads)

    return call


def _mixing(num_heads: int) -> Any:
    @intrinsic
    def call(
        _typing: Any,
        weights: Any,
        stride: Any,
        sums: Any,
        values: Any,
        size: Any,
        slots: Any,
        count: Any,
    ) -> Any:
        signature = types.void(weights, stride, sums, values, size, slots, count)
        return signature, _generating(_mix, num_heads)

    return call


def _generating(make: Callable[[Any, int, Sequence[Any]], None], num_heads: int) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, arguments: Sequence[Any]) -> Any:
        make(builder, num_heads, arguments)
        return context.get_dummy_value()

    return generate


def _score(builder: Any, num_heads: int, arguments: Sequence[Any]) -> None:
    scores, largest, stride, queries, keys, size, slots, count = arguments
    tokens = builder.inttoptr(slots, INT64.as_pointer())
    fronts = [builder.add(largest, builder.mul(stride, long(head))) for head in range(num_heads)]
    kind = ir.VectorType(ir.FloatType(), QUAD)
    outer = Loop(builder, count, QUAD, [load(builder, kind, front) for front in fronts])
    key_bytes = builder.mul(size, long(2))
    last = builder.sub(count, long(1))
    rows = []
    for token in range(QUAD):
        at = at_most(builder, builder.add(outer.index, long(token)), last)
        slot = builder.load(builder.gep(tokens, [at]))
        rows.append(builder.add(keys, builder.mul(slot, key_bytes)))
    nothing = [ZEROS] * (num_heads * QUAD)
    inner = Loop(builder, key_bytes, VECTOR_BYTES, nothing)
    loaded = [load(builder, INTS, builder.add(row, inner.index)) for row in rows]
    add, sums = adding(builder), []
    for head in range(num_heads):
        place = builder.add(queries, builder.mul(key_bytes, long(head)))
        query = load(builder, INTS, builder.add(place, inner.index))
        sums += [
            add(inner.sums[head * QUAD + token], query, key) for token, key in enumerate(loaded)
        ]
    inner.end(sums)
    largest_now = []
    for head in range(num_heads):
        found = totals(builder, sums[head * QUAD : (head + 1) * QUAD])
        place = builder.add(scores, builder.mul(stride, long(head)))
        place = builder.add(place, builder.mul(outer.index, long(4)))
        store(builder, found, place)
        before = outer.sums[head]
        is_larger = builder.fcmp_ordered(">", found, before)
        largest_now.append(builder.select(is_larger, found, before))
    outer.end(largest_now)
    for front, found in zip(fronts, largest_now, strict=True):
        store(builder, found, front)


def _mix(builder: Any, num_heads: int, arguments: Sequence[Any]) -> None:
    weights, stride, sums, values, size, slots, count = arguments
    tokens = builder.inttoptr(slots, INT64.as_pointer())
    per_head = DIMS // LANES
    places = [
        builder.add(sums, builder.add(builder.mul(size, long(4 * head)), long(part * VECTOR_BYTES)))
        for head in range(num_heads)
        for part in range(per_head)
    ]
    loop = Loop(builder, count, 1, [load(builder, FLOATS, place) for place in places])
    slot = builder.load(builder.gep(tokens, [loop.index]))
    row = builder.add(values, builder.mul(slot, builder.mul(size, long(2))))
    wide: list[Any] = []
    for part in range(DIMS // PAIRED):
        pairs = load(builder, INTS, builder.add(row, long(part * VECTOR_BYTES)))
        wide += halves(builder, pairs)
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
    for place, found in zip(places, after, strict=True):
        store(builder, found, place)


_score_one, _score_two, _score_three, _score_four = map(_scoring, range(1, MOST_HEADS + 1))
_mix_one, _mix_two, _mix_three, _mix_four = map(_mixing, range(1, MOST_HEADS + 1))


@compiled
def score(
    num_heads: int,
    scores: int,
    largest: int,
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
        scores: float32, a row a head, with room for a multiple of QUAD.
        largest: float32, QUAD a head, the largest of which is made that of its scores, too.
        stride: bytes from one head's scores to the next, and so for the largest.
        queries: bfloat16 [num_heads, size].
        keys: bfloat16 [all rows, size].
        size: of a head.
        slots: int64 [count]: the tokens' rows.
        count: of tokens, at least one.
    """
    if num_heads == 1:
        _score_one(scores, largest, stride, queries, keys, size, slots, count)
    elif num_heads == 2:  # noqa: PLR2004
        _score_two(scores, largest, stride, queries, keys, size, slots, count)
    elif num_heads == 3:  # noqa: PLR2004
        _score_three(scores, largest, stride, queries, keys, size, slots, count)
    else:
        _score_four(scores, largest, stride, queries, keys, size, slots, count)


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
    """Add DIMS of the values times their weights, for up to MOST_HEADS heads; all by address.

    Args:
        num_heads: how many.
        weights: float32, a row a head.
        stride: bytes from one head's weights to the next.
        sums: float32 [num_heads, size], where the first head's dims begin; see PAIRED.
        values: bfloat16 [all rows, size], where the first row's dims begin.
        size: of a head.
        slots: int64 [count]: the tokens' rows.
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
