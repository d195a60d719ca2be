"""Attention on a CPU, compiled by numba as cpu_kernels' loops are.

It reads keys and values where they are: torch's attention wants them gathered, and rows of one
length. Each token is computed by itself and always in the same order. The pool is as KvCache has
it: a row of its keys or values for each token, at a slot that is the same for all heads, and
block_size rows from one head's to the next one's.
"""

from typing import Any

import numpy as np

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_fetching import fetch
from anole_worker.runtime.cpu_heads import DIMS, MOST_HEADS, PAIRED, mix, score
from anole_worker.runtime.cpu_numbers import exp, narrow, wide
from anole_worker.runtime.llvm_vectors import QUAD

_PIECE = 32
"""Tokens whose keys or values are read while those of the next so many are fetched."""
_LOWEST = np.float32(-3.0e38)


@compiled
def attend(
    result: Any, queries: Any, pool: Any, kv_heads: int, block_size: int, rows: Any, slots: Any
) -> None:
    """Attend from rows of single tokens to their own sequences, in any type.

    Args:
        result: [tokens, heads * size]; that of the rows' tokens is changed in place.
        queries: [tokens, at least heads, size].
        pool: [rows, size]: keys of all kv_heads, then values.
        kv_heads: that all heads share.
        block_size: from one head's rows of the pool to the next.
        rows: int64 [rows, 4], as LoopRows has them.
        slots: int64 [...]: where the tokens of each sequence are.
    """
    size = pool.shape[1]
    heads = result.shape[1] // size
    room = np.empty(2 * size + _longest(rows), dtype=np.float32)
    for token, _, begin, end in rows:
        own = slots[begin:end]
        for head in range(heads):
            shared, index = divmod(head, heads // kv_heads)
            part = result[token][head * size : (head + 1) * size]
            keys, values = pool[shared * block_size :], pool[(kv_heads + shared) * block_size :]
            _attend(part, queries[token, head], keys, values, own, room, index == 0)


@compiled
def attend_narrow(
    result: Any, queries: Any, pool: Any, kv_heads: int, block_size: int, rows: Any, slots: Any
) -> None:
    """As attend(), from chunks, too; in bfloat16, and for heads whose size DIMS divides.

    Heads that share keys and values read them together, and a chunk's tokens find them in the
    cache. (Laying them out anew for a chunk, as products want weights, is no faster.)
    """
    size = pool.shape[1]
    shared = result.shape[1] // size // kv_heads
    width = QUAD + (_longest(rows) + QUAD - 1) // QUAD * QUAD
    scores = np.empty((MOST_HEADS, width), dtype=np.float32)
    sums = np.empty((MOST_HEADS, size), dtype=np.float32)
    for row in range(len(rows)):
        token, count, begin, end = rows[row]
        for kv_head in range(kv_heads):
            if kv_head + 1 < kv_heads:
                _fetch(pool[(kv_head + 1) * block_size :], slots[begin:end])
            elif row + 1 < len(rows):
                _fetch(pool, slots[rows[row + 1, 2] : rows[row + 1, 3]])
            keys = pool[kv_head * block_size :]
            values = pool[(kv_heads + kv_head) * block_size :]
            first, last = kv_head * shared, (kv_head + 1) * shared
            for index in range(count):
                own = slots[begin : end - count + index + 1]
                for head in range(first, last, MOST_HEADS):
                    is_first = index == 0 and head == first
                    part = result[token + index]
                    those = queries[token + index, head : min(head + MOST_HEADS, last)]
                    _attend_together(
                        part[head * size :], those, keys, values, own, scores, sums, is_first
                    )


@compiled
def _longest(rows: Any) -> int:
    longest = 0
    for row in range(len(rows)):
        longest = max(longest, rows[row, 3] - rows[row, 2])
    return longest


@compiled
def _attend_together(
    result: Any,
    queries: Any,
    keys: Any,
    values: Any,
    own: Any,
    scores: Any,
    sums: Any,
    is_first: bool,
) -> None:
    """Of heads that share keys and values.

    result is [heads * size] and may go on behind; queries is [heads, size]. is_first: whether
    nobody has read the keys and values just before.
    """
    heads, count = len(queries), len(own)
    _score_together(scores, queries, keys, values, own, is_first)
    scale = np.float32(1) / np.sqrt(np.float32(queries.shape[1]))
    for head in range(heads):
        row = scores[head]
        largest = max(row[0], row[1], row[2], row[3])
        row[0] = _weigh(row[QUAD : QUAD + count], largest, scale)
    _mix_together(sums, scores, heads, values, own, is_first)
    _store_together(result, sums, scores, heads)


@compiled
def _score_together(
    scores: Any, queries: Any, keys: Any, values: Any, own: Any, is_first: bool
) -> None:
    """Row by row of scores: the largest ones, then all."""
    heads, size = queries.shape
    count, stride, front = len(own), scores.shape[1] * 4, scores.ctypes.data
    scores[:heads, :QUAD] = _LOWEST
    piece = _PIECE if is_first else count
    for at in range(0, count, piece):
        if is_first:
            _fetch_next(keys, values, own, at)
        place, slots = front + (QUAD + at) * 4, own[at:].ctypes.data
        part = min(piece, count - at)
        score(heads, place, front, stride, queries.ctypes.data, keys.ctypes.data, size, slots, part)


@compiled
def _mix_together(
    sums: Any, scores: Any, heads: int, values: Any, own: Any, is_first: bool
) -> None:
    size, count, stride = sums.shape[1], len(own), scores.shape[1] * 4
    sums[:heads] = np.float32(0)
    piece = _PIECE if is_first else count
    for at in range(0, count, piece):
        if is_first:
            _fetch(values, own[at + piece :])
        weights, slots = scores[0, QUAD + at :].ctypes.data, own[at:].ctypes.data
        part = min(piece, count - at)
        for dim in range(0, size, DIMS):
            place, those = sums.ctypes.data + dim * 4, values.ctypes.data + dim * 2
            mix(heads, weights, stride, place, those, size, slots, part)


@compiled
def _store_together(result: Any, sums: Any, scores: Any, heads: int) -> None:
    size = sums.shape[1]
    for head in range(heads):
        scale, row = np.float32(1) / scores[head, 0], sums[head]
        part = result[head * size : (head + 1) * size]
        for dim in range(0, size, PAIRED):
            for index in range(PAIRED // 2):
                even, odd = row[dim + index], row[dim + PAIRED // 2 + index]
                part[dim + 2 * index] = narrow(even * scale, result)
                part[dim + 2 * index + 1] = narrow(odd * scale, result)


@compiled
def _fetch_next(keys: Any, values: Any, own: Any, at: int) -> None:
    """What is read after the piece of the keys that begins there."""
    if at + _PIECE < len(own):
        _fetch(keys, own[at + _PIECE :])
    else:
        _fetch(values, own)


@compiled
def _fetch(rows: Any, slots: Any) -> None:
    """Begin to fetch a piece of the keys or values."""
    num_bytes = rows.shape[1] * rows.itemsize
    for index in range(min(_PIECE, len(slots))):
        fetch(rows.ctypes.data + slots[index] * num_bytes, num_bytes)


@compiled
def _attend(
    result: Any, query: Any, keys: Any, values: Any, own: Any, room: Any, is_first: bool
) -> None:
    size = len(query)
    numbers, sums = room[:size], room[size : 2 * size]
    weights = room[2 * size : 2 * size + len(own)]
    for index in range(size):
        numbers[index] = wide(query[index])
        sums[index] = np.float32(0)
    piece = _PIECE if is_first else len(own)
    for at in range(0, len(own), piece):
        if is_first:
            _fetch_next(keys, values, own, at)
        _score(weights[at : at + piece], numbers, keys, own[at : at + piece])
    scale = np.float32(1) / np.sqrt(np.float32(size))
    scale = np.float32(1) / _weigh(weights, weights.max(), scale)
    for at in range(0, len(own), piece):
        if is_first:
            _fetch(values, own[at + piece :])
        _mix(sums, weights[at : at + piece], values, own[at : at + piece])
    for index in range(size):
        result[index] = narrow(sums[index] * scale, result)


@compiled
def _score(scores: Any, query: Any, keys: Any, own: Any) -> None:
    """Each key times the query; four at a time, so that their sums do not wait for each other."""
    last = len(own) - 1
    for at in range(0, len(own), 4):
        near, far, end = min(at + 1, last), min(at + 2, last), min(at + 3, last)
        one, two, three, four = keys[own[at]], keys[own[near]], keys[own[far]], keys[own[end]]
        sum_one = sum_two = sum_three = sum_four = np.float32(0)
        for index in range(len(query)):
            number = query[index]
            sum_one += number * wide(one[index])
            sum_two += number * wide(two[index])
            sum_three += number * wide(three[index])
            sum_four += number * wide(four[index])
        scores[end], scores[far], scores[near], scores[at] = sum_four, sum_three, sum_two, sum_one


@compiled
def _weigh(scores: Any, largest: Any, scale: Any) -> Any:
    """Make weights of scores, the largest score's being 1; their sum."""
    total = np.float32(0)
    for index in range(len(scores)):
        scores[index] = exp((scores[index] - largest) * scale)
        total += scores[index]
    return total


@compiled
def _mix(sums: Any, weights: Any, values: Any, own: Any) -> None:
    """Add each value times its weight; four at a time, so that the sums are loaded less often."""
    quads = len(own) - len(own) % 4
    for at in range(0, quads, 4):
        one, two, three, four = weights[at], weights[at + 1], weights[at + 2], weights[at + 3]
        first, second = values[own[at]], values[own[at + 1]]
        third, fourth = values[own[at + 2]], values[own[at + 3]]
        for index in range(len(sums)):
            sums[index] += (one * wide(first[index]) + two * wide(second[index])) + (
                three * wide(third[index]) + four * wide(fourth[index])
            )
    for at in range(quads, len(own)):
        one, first = weights[at], values[own[at]]
        for index in range(len(sums)):
            sums[index] += one * wide(first[index])
