"""Size classes: how many there are, and where one ends and the next begins."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

from anole_scheduler.core.kmeans import clusterings
from anole_scheduler.core.size import Measure, Sizing

MAX_WINDOW = 4096
"""Requests that are looked back at, at most."""
_MAX_SAMPLE = 512
"""Of these, evenly spread by size: as many as are clustered, which takes a few ms."""
_LEAST_GAIN = 0.1
"""Of the sum of squares of one class: what a further class must remove for elbow()."""

Clusterings = Sequence[tuple[float, list[float]]]
Chooser = Callable[[Clusterings], list[float]]
"""The centroids of the chosen number of clusters."""


def min_wcss(found: Clusterings) -> list[float]:
    """The number with the smallest sum of squares, as the paper says.

    With optimal clusters that is always the largest number there is (papers' trap: WCSS never rises
    with K), or the number of distinct sizes.
    """
    return min(found, key=lambda clustering: clustering[0])[1]


def elbow(found: Clusterings) -> list[float]:
    """As many as there are before a further one removes less than a tenth of what one has."""
    least = _LEAST_GAIN * found[0][0]
    chosen = 0
    while chosen + 1 < len(found) and found[chosen][0] - found[chosen + 1][0] >= least > 0:
        chosen += 1
    return found[chosen][1]


class SizeClasses:
    """Classes by size, from the smallest; one until enough requests have been seen.

    Source: Chameleon (MICRO'25), section 4.3.4: K-means over recent sizes, cut-offs half-way
    between neighbouring centroids, done anew every refresh.
    """

    def __init__(
        self,
        sizing: Sizing,
        choose: Chooser,
        *,
        max_classes: int,
        refresh_s: float,
        min_sample: int,
    ) -> None:
        self._sizing = sizing
        self._choose = choose
        self._max_classes = max_classes
        self._refresh_s = refresh_s
        self._min_sample = min_sample
        self._window: deque[tuple[float, Measure]] = deque(maxlen=MAX_WINDOW)
        self._cut_offs: list[float] = []
        self._refreshed_s: float | None = None

    @property
    def count(self) -> int:
        return len(self._cut_offs) + 1

    def class_of(self, measure: Measure) -> int:
        """From 0, the smallest; a cut-off itself belongs to the class above it."""
        return bisect_right(self._cut_offs, self._sizing.size(measure)) if self._cut_offs else 0

    def observe(self, measure: Measure, now: float) -> None:
        """A request has come."""
        self._window.append((now, measure))

    def is_due(self, now: float) -> bool:
        """Whether to call refresh(): at once when the first sample is full, then now and then."""
        if self._refreshed_s is None:
            return len(self._window) >= self._min_sample
        return now >= self._refreshed_s + self._refresh_s

    def recent(self, now: float) -> tuple[list[Measure], float]:
        """What has come in the last refresh interval, and the seconds that it took to come."""
        since_s = now - self._refresh_s
        window = [(at_s, measure) for at_s, measure in self._window if at_s >= since_s]
        if not window:
            return [], self._refresh_s
        return [measure for _, measure in window], max(now - window[0][0], 1.0)

    def refresh(self, now: float) -> bool:
        """Cluster what came lately; with too little of it all stays as it is, and that is False."""
        self._refreshed_s = now
        window, _ = self.recent(now)
        if len(window) < self._min_sample:
            return False
        self._sizing.refit(window)
        sizes = sorted(map(self._sizing.size, window))
        step = max(len(sizes) / _MAX_SAMPLE, 1.0)
        sample = [sizes[int(place * step)] for place in range(int(len(sizes) / step))]
        centroids = self._choose(clusterings(sample, self._max_classes))
        self._cut_offs = [(low + high) / 2 for low, high in pairwise(centroids)]
        return True
