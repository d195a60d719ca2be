"""Chooses the worker for a request: filter, score, pick."""

from collections.abc import Sequence
from dataclasses import dataclass

from anole_scheduler.core.policy import Filter, Picker, Scorer
from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A choice made of policies."""

    filters: tuple[Filter, ...]
    """A worker must pass all of them."""
    scorers: tuple[Scorer, ...]
    """The most important first: a later one only decides between workers equal so far."""
    picker: Picker

    def choose(self, progress: Progress, workers: Sequence[Worker]) -> Worker | None:
        """The worker for the request, None while there is none. workers come in order of id."""
        if not workers:
            return None
        fitting = [
            worker for worker in workers if worker.is_open and self._passes(progress, worker)
        ]
        if len(fitting) <= 1:
            return fitting[0] if fitting else None
        return self.picker.pick(
            [
                (tuple([scorer.score(progress, worker) for scorer in self.scorers]), worker)
                for worker in fitting
            ]
        )

    def _passes(self, progress: Progress, worker: Worker) -> bool:
        for policy in self.filters:  # noqa: SIM110 - asked about every worker: all() takes longer
            if not policy.passes(progress, worker):
                return False
        return True
