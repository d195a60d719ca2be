"""Output-length predictors that know the truth, as well as they are told to.

They satisfy the scheduler's Predictor; what it predicts with in production learns instead.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from random import Random

from anole_scheduler.core.request import Request
from anole_shared.ids import RequestId
from anole_sim.metrics import mean

_CONFUSION = ((0.830, 0.165, 0.005), (0.165, 0.794, 0.041), (0.081, 0.691, 0.228))
"""Chance of each predicted class for each true one: scored from the published predictions of the
open BERT proxy that Chameleon uses (short, medium, long; 81 % right)."""
_SHARES = (0.503, 0.991)
"""Where these classes end, as quantiles of the output lengths."""


class Perfect:
    """Says how long each answer will be."""

    def __init__(self, lengths: Mapping[RequestId, int]) -> None:
        self._lengths = lengths

    def predict(self, request: Request) -> int:
        """Output tokens."""
        return _clipped(self._lengths[request.request_id], request)

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:
        """It knows all there is."""


class Classes:
    """Says the mean length of a class: the true class, or by chance another one."""

    def __init__(
        self,
        lengths: Mapping[RequestId, int],
        edges: Sequence[float],
        chances: Sequence[Sequence[float]],
        seed: int,
    ) -> None:
        """edges: where one class ends and the next begins; chances: of each, for each true one."""
        classes: list[list[int]] = [[] for _ in range(len(edges) + 1)]
        for length in lengths.values():
            classes[bisect_right(edges, length)].append(length)
        typical = [max(1, round(mean(members))) for members in classes]
        self._said: dict[RequestId, int] = {}
        random = Random(f"predictor {seed}")
        for request_id, length in lengths.items():
            (said,) = random.choices(typical, weights=chances[bisect_right(edges, length)])
            self._said[request_id] = said

    def predict(self, request: Request) -> int:
        """Output tokens."""
        return _clipped(self._said[request.request_id], request)

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:
        """It was made with what it knows."""


def _clipped(tokens: int, request: Request) -> int:
    return max(1, min(tokens, request.max_tokens))


def _quantiles(lengths: Mapping[RequestId, int], shares: Sequence[float]) -> list[float]:
    ordered = sorted(lengths.values())
    return [ordered[min(int(share * len(ordered)), len(ordered) - 1)] for share in shares]


def confused(lengths: Mapping[RequestId, int], seed: int) -> Classes:
    """The paper's predictor: three classes, 81 % right, wrong as it is."""
    return Classes(lengths, _quantiles(lengths, _SHARES), _CONFUSION, seed)


def forced(lengths: Mapping[RequestId, int], seed: int, accuracy: float) -> Classes:
    """Five equal classes, right as often as that; else any other one."""
    edges = _quantiles(lengths, (0.2, 0.4, 0.6, 0.8))
    wrong = (1 - accuracy) / 4
    chances = [[accuracy if said == true else wrong for said in range(5)] for true in range(5)]
    return Classes(lengths, edges, chances, seed)


PREDICTORS: Mapping[str, Callable[[Mapping[RequestId, int], int], Perfect | Classes]] = {
    "perfect": lambda lengths, _: Perfect(lengths),
    "paper": confused,
    "100": lambda lengths, seed: forced(lengths, seed, 1.0),
    "80": lambda lengths, seed: forced(lengths, seed, 0.8),
    "60": lambda lengths, seed: forced(lengths, seed, 0.6),
}
"""By name; `online` and `none` are the scheduler's own."""
