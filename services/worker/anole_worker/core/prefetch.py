"""Guesses from the times between requests which adapter is needed next."""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

from anole_worker.core.adapter import Adapter

_MAX_GAPS = 128
_MIN_GAPS, _MIN_LEFT = 6, 4
_MARGIN = 0.1
_EARLY = 0.05
_BINS = 48
_FIRST_BIN_S = 0.25
_BINS_AN_OCTAVE = 3
_REPRESENTATIVE_CV = 2.0


@dataclass(slots=True)
class _Arrivals:
    last_s: float
    gaps: deque[int] = field(default_factory=deque)
    """The bins of the last times between requests."""
    counts: list[int] = field(default_factory=lambda: [0] * _BINS)
    due_s: float = math.inf
    """From when on the next request is likely, for all that is known up to known_until_s."""
    known_until_s: float = -math.inf


class ArrivalHistogram:
    """For each adapter a histogram of the times between its requests, and when the next is likely.

    Of an adapter's gaps only those count that can still be: which lasted as long as the present
    one has. So the pause behind a burst is seen, though most gaps are within bursts. An adapter is
    *due* from shortly before the 5th percentile of these gaps until the longest is over, if they
    are representative: counts vary enough over the bins that they could be in (coefficient of
    variation above 2, without what so few gaps vary by chance), as a flat histogram says nothing.
    Bins are logarithmic, a third of an octave from 0.25 s to 4 h. Requests that come at random
    (Poisson) are rarely called due. Source: M. Shahrad et al., "Serverless in the Wild", ATC 2020,
    section 4.2, there in minutes, for functions, and with all gaps.
    """

    def __init__(self, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._arrivals: dict[Adapter, _Arrivals] = {}  # least recently used first

    def arrived(self, adapter: Adapter, now: float) -> None:
        """A request for the adapter has come."""
        known = self._arrivals.pop(adapter, None)
        if known is None:
            known = _Arrivals(now)
        else:
            _add(known, min(_bin(now - known.last_s), _BINS - 1))
            known.last_s = now
            known.known_until_s = -math.inf
        self._arrivals[adapter] = known
        if len(self._arrivals) > self._max_adapters:
            del self._arrivals[next(iter(self._arrivals))]

    def due(self, absent: Iterable[Adapter], now: float) -> Iterator[Adapter]:
        """Those of the absent adapters that are likely to be needed soon."""
        for adapter in absent:
            known = self._arrivals.get(adapter)
            if known is None or len(known.gaps) < _MIN_GAPS:
                continue
            if now >= known.known_until_s:
                _look_ahead(known, now)
            if now >= known.due_s:
                yield adapter

    @property
    def known(self) -> tuple[Adapter, ...]:
        """The adapters that were asked for, the most recent first."""
        return tuple(reversed(self._arrivals))


def _add(known: _Arrivals, index: int) -> None:
    known.gaps.append(index)
    known.counts[index] += 1
    if len(known.gaps) > _MAX_GAPS:
        known.counts[known.gaps.popleft()] -= 1


def _look_ahead(known: _Arrivals, now: float) -> None:
    """From when on the next request is likely, and for how long that can be said."""
    first = _bin((now - known.last_s) / (1 + _MARGIN))
    left = known.counts[first:]
    known.known_until_s = known.last_s + _edge(first + 1) * (1 + _MARGIN) if left else math.inf
    known.due_s = math.inf
    if _is_representative(left):
        early = next(i for i, seen in enumerate(accumulate(left)) if seen >= _EARLY * sum(left))
        known.due_s = known.last_s + _edge(first + early) * (1 - _MARGIN)


def _is_representative(counts: list[int]) -> bool:
    """Whether counts vary over their bins by more than chance.

    The chance that two gaps are in the same bin is what tells, and is the same however few gaps
    there are; the mere coefficient of variation of n counts in b bins is about sqrt(b / n) where
    nothing is to be known, which is above 2 up to 11 gaps.
    """
    num_gaps = sum(counts)
    if num_gaps < _MIN_LEFT:
        return False
    in_same = sum(count * (count - 1) for count in counts) / (num_gaps * (num_gaps - 1))
    return len(counts) * in_same - 1 > _REPRESENTATIVE_CV**2


def _bin(gap: float) -> int:
    octaves = math.log2(max(gap, _FIRST_BIN_S) / _FIRST_BIN_S)
    return int(octaves * _BINS_AN_OCTAVE)


def _edge(index: int) -> float:
    """Where a bin begins; the first takes all that is shorter."""
    return 0.0 if index == 0 else float(_FIRST_BIN_S * 2 ** (index / _BINS_AN_OCTAVE))
