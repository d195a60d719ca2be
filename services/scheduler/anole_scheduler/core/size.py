"""How large a request is, as one number, for sorting requests into classes."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from anole_scheduler.core.request import Progress


class Measure(NamedTuple):
    """What a request's size is made of."""

    num_prompt_tokens: int
    predicted_tokens: int
    rank: int
    """0 where it has no adapter, or nobody knows the adapter yet."""
    adapter_bytes: int = 0


def measure_of(progress: Progress) -> Measure:
    """Of a request as it is expected to be."""
    request, adapter = progress.request, progress.adapter
    if adapter is None:
        return Measure(request.num_prompt_tokens, progress.predicted_tokens, 0)
    return Measure(
        request.num_prompt_tokens, progress.predicted_tokens, adapter.rank, adapter.size_bytes
    )


class Sizing(Protocol):
    """One number out of a measure; above 0, and at most 1."""

    def refit(self, window: Iterable[Measure]) -> None:
        """Take the largest of the window for the largest there are, until the next time."""
        ...

    def size(self, measure: Measure) -> float: ...


class WeightedSize:
    """Chameleon's weighted request size (MICRO'25, section 4.3.1).

    (A x prompt / longest prompt + B x output / longest output) x (rank / largest rank). The paper
    does not say what the largest are: here those of the last window, fixed until the next refresh
    so that sizes and cut-offs keep one scale, ratios clipped to 1. A request without adapter would
    be of size 0 however long it is: ranks have a floor.
    """

    def __init__(self, input_weight: float, output_weight: float, rank_floor: int) -> None:
        self._weights = (input_weight, output_weight)
        self._rank_floor = rank_floor
        self._largest = Measure(1, 1, rank_floor)

    def refit(self, window: Iterable[Measure]) -> None:
        self._largest = _largest(window, self._rank_floor)

    def size(self, measure: Measure) -> float:
        most_prompt, most_predicted, most_rank, _ = self._largest
        prompt, predicted, rank, _ = measure
        input_weight, output_weight = self._weights
        tokens = input_weight * min(prompt / most_prompt, 1.0)
        tokens += output_weight * min(predicted / most_predicted, 1.0)
        return tokens * min(max(rank, self._rank_floor) / most_rank, 1.0)


class OutputSize:
    """Predicted output alone: the paper's ablation OutputOnly, after muServe."""

    def __init__(self) -> None:
        self._largest = Measure(1, 1, 1)

    def refit(self, window: Iterable[Measure]) -> None:
        self._largest = _largest(window, 1)

    def size(self, measure: Measure) -> float:
        return min(measure.predicted_tokens / self._largest.predicted_tokens, 1.0)


def _largest(window: Iterable[Measure], rank_floor: int) -> Measure:
    prompt, output, rank = 1, 1, rank_floor
    for measure in window:
        prompt = max(prompt, measure.num_prompt_tokens)
        output = max(output, measure.predicted_tokens)
        rank = max(rank, measure.rank)
    return Measure(prompt, output, rank)
