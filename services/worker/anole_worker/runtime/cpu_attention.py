"""Attention on a CPU, compiled by numba as cpu_kernels' loops are.

It reads keys and values where they are: torch's attention wants them gathered, and rows of one
length. Each token is computed by itself and always in the same order.
"""

from typing import Any

import numpy as np

from anole_worker.runtime.compiling import compiled
from anole_worker.runtime.cpu_heads import DIMS, MOST_HEADS, PAIRED, mix, score
from anole_worker.runtime.cpu_numbers import exp, narrow, wide
from anole_worker.runtime.llvm_vectors import QUAD


@compiled
def attend(result: Any, queries: Any, pool: Any, rows: Any, slots: Any) -> None:
    """Attend from rows of single tokens to their own sequences, in any type.

    Args:
        result: [tokens, heads * size]; that of the rows' tokens is changed in place.
        queries: [tokens, at least heads, size].
        pool: [2 * kv_heads, slots, size], keys before values.
        rows: int64 [rows, 4], as LoopRows has them.
        slots: int64 [...]: where the tokens of each sequence are.
    """
    kv_heads, size = len(pool) // 2, pool.shape[2]
    heads = result.shape[1] // size
    room = np.empty(2 * size + _longest(rows), dtype=np.float32)
    for token, _, begin, end in rows:
        own = slots[begin:end]
        for head in range(heads):
            shared = head // (heads // kv_heads)
            part = result[token][head * size : (head + 1) * size]
            query = queries[token, head]
            _attend(part, query, pool[shared], pool[kv_heads + shared], own, room)


@compiled
def attend_narrow(result: Any, queries: Any, pool: Any, rows: Any, slots: Any) -> None:
    """As attend(), from chunks, too; in bfloat16, and for heads whose size DIMS divides.

    Heads that share keys and values read them together, and a chunk's tokens find them in the
    cache. (Laying them out anew for a chunk, as products want weights, is no faster.)
    """
    kv_heads, size = len(pool) // 2, pool.shape[2]
    shared = result.shape[1] // size // kv_heads
    width = QUAD + (_longest(rows) + QUAD - 1) // QUAD * QUAD
    scores = np.empty((MOST_HEADS, width), dtype=np.float32)
    sums = np.empty((MOST_HEADS, size), dtype=np.float32)
    for kv_head in range(kv_heads):
        keys, values = pool[kv_head], pool[kv_heads + kv_head]
        first, last = kv_head * shared, (kv_head + 1) * shared
        for token, count, begin, end in rows:
            for index in range(count):
                own = slots[begin : end - count + index + 1]
                for head in range(first, last, MOST_HEADS):
                    part = result[token + index]
                    those = queries[token + index, head : min(head + MOST_HEADS, last)]
                    _attend_together(part[head * size :], those, keys, values, own, scores, sums)


@compiled
def _longest(rows: Any) -> int:
    longest = 0
    for row in range(len(rows)):
        longest = max(longest, rows[row, 3] - rows[row, 2])
    return longest


@compiled
def _attend_together(
    result: Any, queries: Any, keys: Any, values: Any, own: Any, scores: Any, sums: Any
) -> None:
    """Of heads that share keys and values.

    result is [heads * size] and may go on behind; queries is [heads, size].
    """
    heads, size = queries.shape
    count, stride, slots = len(own), scores.shape[1] * 4, own.ctypes.data
    weights = scores[0, QUAD:].ctypes.data
    score(heads, weights, stride, queries.ctypes.data, keys.ctypes.data, size, slots, count)
    scale = np.float32(1) / np.sqrt(np.float32(size))
    for head in range(heads):
        row = scores[head]
        largest = max(row[0], row[1], row[2], row[3])
        row[0] = _weigh(row[QUAD : QUAD + count], largest, scale)
    for dim in range(0, size, DIMS):
        place, those = sums.ctypes.data + dim * 4, values.ctypes.data + dim * 2
        mix(heads, weights, stride, place, those, size, slots, count)
    for head in range(heads):
        scale, row = np.float32(1) / scores[head, 0], sums[head]
        part = result[head * size : (head + 1) * size]
        for dim in range(0, size, PAIRED):
            for index in range(PAIRED // 2):
                even, odd = row[dim + index], row[dim + PAIRED // 2 + index]
                part[dim + 2 * index] = narrow(even * scale, result)
                part[dim + 2 * index + 1] = narrow(odd * scale, result)


@compiled
def _attend(result: Any, query: Any, keys: Any, values: Any, own: Any, room: Any) -> None:
    size = len(query)
    numbers, sums = room[:size], room[size : 2 * size]
    weights = room[2 * size : 2 * size + len(own)]
    for index in range(size):
        numbers[index] = wide(query[index])
        sums[index] = np.float32(0)
    _score(weights, numbers, keys, own)
    scale = np.float32(1) / np.sqrt(np.float32(size))
    scale = np.float32(1) / _weigh(weights, weights.max(), scale)
    _mix(sums, weights, values, own)
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
