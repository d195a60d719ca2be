"""The questions that policies answer. A policy keeps no state of the scheduler's."""

from collections.abc import Sequence
from typing import Protocol

from anole_scheduler.core.request import Progress, Request
from anole_scheduler.core.worker import Worker

Key = tuple[float, ...]
"""Sorts waiting requests; the smallest is served first, equal ones by request id."""

Scores = tuple[float, ...]
"""One score a scorer, the most important first; higher is better."""


class Ordering(Protocol):
    """Who is next."""

    def key(self, progress: Progress) -> Key:
        """The request's place; asked once, when it begins to wait."""
        ...


class Filter(Protocol):
    """Which workers may get a request."""

    def passes(self, request: Request, worker: Worker) -> bool: ...


class Scorer(Protocol):
    """Which of these workers are better."""

    def score(self, request: Request, worker: Worker) -> float:
        """Higher is better."""
        ...


class Picker(Protocol):
    """Which one it is."""

    def pick(self, candidates: Sequence[tuple[Scores, Worker]]) -> Worker:
        """One of the candidates, of which there is at least one; they come in order of id."""
        ...
