"""K-means in one dimension: exact, because sorted values have contiguous clusters."""

from collections.abc import Sequence
from itertools import accumulate


def clusterings(values: Sequence[float], max_clusters: int) -> list[tuple[float, list[float]]]:
    """For 1, 2, ... clusters the smallest possible sum of squares, and the centroids, ascending.

    Never more clusters than distinct values. By dynamic programming over the sorted values; where
    the last cluster begins only moves up with its end, so that divide and conquer finds a row in
    O(n log n) (H. Wang and M. Song, "Ckmeans.1d.dp", The R Journal 3/2, 2011, and its sequel).
    """
    ordered = sorted(values)
    segments = _Segments(ordered)
    count = len(ordered)
    costs = [segments.cost(0, end) for end in range(1, count + 1)]
    begins = [[0] * count]
    found = [(costs[-1], [segments.mean(0, count)])]
    for _ in range(2, min(max_clusters, len(set(ordered))) + 1):
        costs, begin = _next_row(segments, costs)
        begins.append(begin)
        found.append((costs[-1], _centroids(segments, begins)))
    return found


class _Segments:
    """Sums of squares of any run of sorted values in O(1)."""

    def __init__(self, ordered: Sequence[float]) -> None:
        # Around the middle one, so that the squares' difference keeps its digits.
        middle = ordered[len(ordered) // 2]
        self._middle = middle
        self._sums = [0.0, *accumulate(value - middle for value in ordered)]
        self._squares = [0.0, *accumulate((value - middle) ** 2 for value in ordered)]

    def cost(self, begin: int, end: int) -> float:
        """Of the values from begin up to before end."""
        total = self._sums[end] - self._sums[begin]
        squares = self._squares[end] - self._squares[begin]
        return max(squares - total * total / (end - begin), 0.0)

    def mean(self, begin: int, end: int) -> float:
        return self._middle + (self._sums[end] - self._sums[begin]) / (end - begin)


def _next_row(segments: _Segments, before: Sequence[float]) -> tuple[list[float], list[int]]:
    """With one cluster more: the cost of each prefix, and where its last cluster begins."""
    count = len(before)
    costs, begins = list(before), [0] * count
    # Prefixes from..to, whose last cluster begins within low..high.
    pending = [(0, count - 1, 0, count - 1)]
    while pending:
        first, last, low, high = pending.pop()
        if first > last:
            continue
        middle = (first + last) // 2
        best, at = before[middle], 0
        for begin in range(max(low, 1), min(high, middle) + 1):
            cost = before[begin - 1] + segments.cost(begin, middle + 1)
            if cost < best:
                best, at = cost, begin
        costs[middle], begins[middle] = best, at
        pending.append((first, middle - 1, low, at or high))
        pending.append((middle + 1, last, at, high))
    return costs, begins


def _centroids(segments: _Segments, begins: Sequence[Sequence[int]]) -> list[float]:
    end = len(begins[0])
    centroids: list[float] = []
    for row in reversed(begins):
        if end == 0:
            break
        begin = row[end - 1]
        centroids.append(segments.mean(begin, end))
        end = begin
    return centroids[::-1]
