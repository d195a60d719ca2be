"""Chooses the worker for a request: filter, score, pick."""

from collections.abc import Iterable
from dataclasses import dataclass

from anole_scheduler.core.policy import Filter, Picker, Scorer
from anole_scheduler.core.request import Request
from anole_scheduler.core.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A choice made of policies."""

    filters: tuple[Filter, ...]
    """A worker must pass all of them."""
    scorers: tuple[Scorer, ...]
    """The most important first: a later one only decides between workers equal so far."""
    picker: Picker

    def choose(self, request: Request, workers: Iterable[Worker]) -> Worker | None:
        """The worker for the request, None while there is none. workers come in order of id."""
        candidates = [
            (tuple([scorer.score(request, worker) for scorer in self.scorers]), worker)
            for worker in workers
            if all(policy.passes(request, worker) for policy in self.filters)
        ]
        return self.picker.pick(candidates) if candidates else None
