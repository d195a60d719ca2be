"""What users feel, out of what has happened to each request."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

TOKEN_GAP_SLO_S = 0.15
"""Time between two tokens: Chameleon's SLO."""
EXECUTIONS_PER_SLO = 5
"""The SLO for the first token, in mean executions of a request that is alone (Chameleon)."""
_SIZE_CLASSES = 3


@dataclass(slots=True)
class Life:
    """One request as its client saw it."""

    arrival_s: float
    isolated_s: float
    """What it would take alone, with its adapter's load."""
    num_tokens: int
    first_s: float = math.nan
    end_s: float = math.nan
    num_made: int = 0
    """Tokens that the client has."""

    @property
    def is_over(self) -> bool:
        """Whether its client has all of it."""
        return not math.isnan(self.end_s)

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Mean time between two of its tokens."""
        return (self.end_s - self.first_s) / (self.num_tokens - 1) if self.num_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run's figures: seconds, shares of 1, bytes."""

    requests: int
    unfinished: int
    ttft_p50: float
    ttft_p99: float
    ttft_mean: float
    tbt_p99: float
    """Over all single gaps between two tokens of a stream."""
    tpot_p99: float
    """Over the requests' mean gaps."""
    e2e_mean: float
    e2e_p99: float
    longest_wait: float
    """The longest time to a first token."""
    ttft_slo: float
    goodput: float
    """Requests a second that had their first token and their gaps within the SLOs."""
    throughput: float
    """Requests that ended, for each second until the last of them did."""
    hit_rate: float
    link_bytes_per_s: float
    preemptions: int
    slowdown_small: float
    """Mean time as a multiple of the time alone; of the third of the requests that are shortest."""
    slowdown_medium: float
    slowdown_large: float

    def to_json(self) -> dict[str, float | int]:
        """Rounded to what the model can tell."""
        return {
            key: round(value, 5) if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


def summarise(
    lives: Sequence[Life],
    gaps: Iterable[tuple[float, int]],
    *,
    warm_up_s: float,
    duration_s: float,
    starts: int,
    hits: int,
    link_bytes: int,
    preemptions: int,
) -> Summary:
    """The figures over the requests that came after the warm-up."""
    counted = [life for life in lives if life.arrival_s >= warm_up_s]
    ended = [life for life in counted if life.is_over]
    ttfts = sorted(life.ttft_s for life in ended)
    tpots = sorted(life.tpot_s for life in ended if life.num_tokens > 1)
    slo_s = EXECUTIONS_PER_SLO * mean([life.isolated_s for life in counted])
    good = sum(one.ttft_s <= slo_s and one.tpot_s <= TOKEN_GAP_SLO_S for one in ended)
    last_s = max((life.end_s for life in lives if life.is_over), default=0.0)
    thirds = _slowdowns(ended)
    return Summary(
        requests=len(counted),
        unfinished=len(counted) - len(ended),
        ttft_p50=quantile(ttfts, 0.5),
        ttft_p99=quantile(ttfts, 0.99),
        ttft_mean=mean(ttfts),
        tbt_p99=_weighted_quantile(gaps, 0.99),
        tpot_p99=quantile(tpots, 0.99),
        e2e_mean=mean([life.e2e_s for life in ended]),
        e2e_p99=quantile(sorted(life.e2e_s for life in ended), 0.99),
        longest_wait=ttfts[-1] if ttfts else 0.0,
        ttft_slo=slo_s,
        goodput=good / max(duration_s - warm_up_s, 1e-9),
        throughput=sum(one.is_over for one in lives) / max(last_s, 1e-9),
        hit_rate=hits / starts if starts else 1.0,
        link_bytes_per_s=link_bytes / max(last_s, 1e-9),
        preemptions=preemptions,
        slowdown_small=thirds[0],
        slowdown_medium=thirds[1],
        slowdown_large=thirds[2],
    )


def _slowdowns(ended: Sequence[Life]) -> list[float]:
    by_size = sorted(ended, key=lambda life: life.isolated_s)
    edges = [len(by_size) * place // _SIZE_CLASSES for place in range(_SIZE_CLASSES + 1)]
    parts = [by_size[begin:end] for begin, end in pairwise(edges)]
    return [mean([life.e2e_s / life.isolated_s for life in part]) for part in parts]


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that so many are not above; 0 of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


def _weighted_quantile(values: Iterable[tuple[float, int]], share: float) -> float:
    ordered = sorted(values)
    left = share * sum(count for _, count in ordered)
    for value, count in ordered:
        left -= count
        if left <= 0:
            return value
    return 0.0
