"""What the scheduler has counted, for metrics.

The sizes are fixed, whatever classes the policy has: those move with the load, and as labels they
would make numbers of two hours incomparable.
"""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from anole_scheduler.core.predictor import OnlinePredictor
from anole_scheduler.core.residency import Residency
from anole_shared.messages import FailureCode, SchedulerRecord, Size, SizeRecord

WAIT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Of the histogram of waits."""

_SMALL_TOKENS, _MEDIUM_TOKENS = 512, 2048


def size_of(num_tokens: int) -> Size:
    """The size of a request by its tokens, prompt and expected output together."""
    if num_tokens <= _SMALL_TOKENS:
        return Size.SMALL
    return Size.MEDIUM if num_tokens <= _MEDIUM_TOKENS else Size.LARGE


@dataclass(slots=True)
class _Waits:
    num_waiting: int = 0
    num_admitted: int = 0
    sum_s: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BOUNDS_S) + 1))


class Tally:
    """Counts since this process began to serve."""

    def __init__(self) -> None:
        self._waits = {size: _Waits() for size in Size}
        self._num_running = 0
        self._failed: Counter[FailureCode] = Counter()
        self._num_lookups = 0
        self._num_hits = 0

    def waits(self, size: Size) -> None:
        """A request has begun to wait."""
        self._waits[size].num_waiting += 1

    def waits_no_more(self, size: Size) -> None:
        """It was admitted, has failed, or nobody wants it any more."""
        self._waits[size].num_waiting -= 1

    def admitted(self, size: Size, wait_s: float, residency: Residency | None) -> None:
        """A worker has got it; residency is that of its adapter there, if it is known."""
        waits = self._waits[size]
        waits.num_admitted += 1
        waits.sum_s += wait_s
        waits.counts[bisect_left(WAIT_BOUNDS_S, wait_s)] += 1
        if residency is not None:
            self._num_lookups += 1
            self._num_hits += residency is Residency.RESIDENT

    def runs(self) -> None:
        """A worker has a request."""
        self._num_running += 1

    def runs_no_more(self) -> None:
        """A worker has a request no more."""
        self._num_running -= 1

    def failed(self, code: FailureCode) -> None:
        """A gateway was told that there is no (further) answer."""
        self._failed[code] += 1

    def record(self, scheduler_id: str, predictor: OnlinePredictor) -> SchedulerRecord:
        """All of it, as the store shows it."""
        accuracy = predictor.accuracy
        return SchedulerRecord(
            scheduler_id=scheduler_id,
            num_running=self._num_running,
            sizes=tuple(
                SizeRecord(
                    size=size,
                    num_waiting=waits.num_waiting,
                    num_admitted=waits.num_admitted,
                    wait_sum_s=waits.sum_s,
                    wait_counts=tuple(waits.counts),
                )
                for size, waits in self._waits.items()
            ),
            wait_bounds_s=WAIT_BOUNDS_S,
            failed={code.value: count for code, count in self._failed.items()},
            num_adapter_lookups=self._num_lookups,
            num_adapter_hits=self._num_hits,
            num_learnt=accuracy.num_learnt,
            share_in_class=accuracy.in_class,
            share_within_factor_2=accuracy.within_factor_2,
        )
