"""Attention of single tokens on a CPU, compiled by numba as cpu_kernels' loops are.

It reads keys and values where they are: torch's attention wants them gathered, and rows of one
length. Each row is computed by itself and always in the same order.
"""

from typing import Any

import numpy as np

from anole_worker.runtime.cpu_heads import DIMS, MOST_HEADS, PAIRED, mix, score
from anole_worker.runtime.cpu_numbers import compiled, exp, narrow, wide
from anole_worker.runtime.llvm_vectors import QUAD


@compiled
def attend(
    result: Any, queries: Any, pool: Any, tokens: Any, begins: Any, ends: Any, slots: Any
) -> None:
    """Attend from single tokens to the keys and values of their own sequences, of any type.

    Args:
        result: [tokens, heads * size]; the rows in `tokens` are changed in place.
        queries: [tokens, heads, size].
        pool: [2 * kv_heads, slots, size], keys before values.
        tokens: int64 [singles]: which of the tokens they are.
        begins: int64 [singles]: where in `slots` what each sees begins.
        ends: int64 [singles]: where it ends.
        slots: int64 [...]: where the tokens of each sequence are.
    """
    kv_heads, size = len(pool) // 2, pool.shape[2]
    heads = result.shape[1] // size
    room = np.empty(2 * size + _longest(begins, ends), dtype=np.float32)
    for single in range(len(tokens)):
        own = slots[begins[single] : ends[single]]
        for head in range(heads):
            shared = head // (heads // kv_heads)
            part = result[tokens[single]][head * size : (head + 1) * size]
            query = queries[tokens[single], head]
            _attend(part, query, pool[shared], pool[kv_heads + shared], own, room)


@compiled
def attend_narrow(
    result: Any, queries: Any, pool: Any, tokens: Any, begins: Any, ends: Any, slots: Any
) -> None:
    """As attend(), in bfloat16 and for heads whose size DIMS divides.

    Those that share keys and values read them together.
    """
    kv_heads, size = len(pool) // 2, pool.shape[2]
    shared = result.shape[1] // size // kv_heads
    width = QUAD + (_longest(begins, ends) + QUAD - 1) // QUAD * QUAD
    scores = np.empty((MOST_HEADS, width), dtype=np.float32)
    sums = np.empty((MOST_HEADS, size), dtype=np.float32)
    for kv_head in range(kv_heads):  # whose keys and values stay in the cache for a chunk's tokens
        keys, values = pool[kv_head], pool[kv_heads + kv_head]
        for single in range(len(tokens)):
            own = slots[begins[single] : ends[single]]
            end = (kv_head + 1) * shared
            for first in range(kv_head * shared, end, MOST_HEADS):
                last = min(first + MOST_HEADS, end)
                part = result[tokens[single]][first * size : last * size]
                those = queries[tokens[single], first:last]
                _attend_together(part, those, keys, values, own, scores, sums)


@compiled
def _longest(begins: Any, ends: Any) -> int:
    longest = 0
    for single in range(len(begins)):
        longest = max(longest, ends[single] - begins[single])
    return longest


@compiled
def _attend_together(
    result: Any, queries: Any, keys: Any, values: Any, own: Any, scores: Any, sums: Any
) -> None:
    """Of heads that share keys and values; result is [heads * size], queries [heads, size]."""
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
