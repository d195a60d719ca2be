"""The questions that policies answer, and what a policy may ask for."""

from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId, RequestId, WorkerId

Key = float
"""Sorts waiting requests; the smallest is served first, equal ones by request id."""

Scores = tuple[float, ...]
"""One score a scorer, the most important first; higher is better."""


class Outcome(Enum):
    """What became of a request that was offered."""

    STARTED = auto()
    """A worker got it."""
    REFUSED = auto()
    """It can never run, and its gateway was told so."""
    NO_ROOM = auto()
    """No worker that is allowed can take it now."""


class Dispatch(Protocol):
    """What an admission policy can do with a waiting request."""

    @property
    def workers(self) -> Sequence[Worker]:
        """Every worker, in order of id."""
        ...

    def offer(self, progress: Progress, among: Sequence[Worker] | None = None) -> Outcome:
        """Give the request to the best of the workers, if one can take it.

        among: look at these only, given in order of id; None: at all.
        """
        ...

    def choose(self, progress: Progress, among: Sequence[Worker] | None = None) -> Worker | None:
        """The worker that offer() would give it to."""
        ...

    def load(self, progress: Progress) -> bool:
        """Have the request's adapter loaded by the best worker that has room for the request.

        False where there is none, or enough adapters are on their way to each.
        """
        ...

    def squash(self, progress: Progress, reason: str) -> None:
        """Have a running request stopped and sent again."""
        ...

    def reserve(self, progress: Progress, worker: Worker | None = None) -> bool:
        """Give a worker nothing else until it has got this request; False where none can be.

        worker: this one; None: the least loaded that can ever run it.
        """
        ...


class Admission(Protocol):
    """Holds the waiting requests and decides which of them is offered next.

    It is told everything that may make a difference and remembers what was turned away, so that
    admit() costs next to nothing where nothing has changed. It may not depend on set order.
    """

    def __len__(self) -> int: ...

    def __contains__(self, request_id: RequestId) -> bool: ...

    def push(self, progress: Progress, now: float) -> None:
        """Let a request wait for its turn."""
        ...

    def remove(self, progress: Progress) -> None:
        """It waits no more, for whatever reason: one that was offered and taken, too."""
        ...

    def running(self, progress: Progress, worker: Worker, now: float) -> None:
        """A worker has it now, whether it was offered here or had it already."""
        ...

    def ended(self, progress: Progress, now: float) -> None:
        """Its worker has it no more."""
        ...

    def room_changed(self, worker: Worker | None) -> None:
        """The worker may have room that it had not; None: any of them may."""
        ...

    def adapter_moved(self, adapter_id: AdapterId) -> None:
        """An adapter has come to a worker, or gone."""
        ...

    def worker_left(self, worker_id: WorkerId) -> None:
        """The worker is gone, and everything that it had has ended."""
        ...

    def admit(self, dispatch: Dispatch, now: float) -> None:
        """Offer requests until nothing more can start."""
        ...

    def upcoming(self, count: int) -> list[Progress]:
        """At most count waiting requests, those first whose turn comes first."""
        ...

    def check_invariants(self) -> None:
        """Assert that nothing is lost, counted twice or negative; looks at everything."""
        ...


class Ordering(Protocol):
    """Who is next in a single line."""

    def key(self, progress: Progress, now: float) -> Key:
        """The request's place; asked once, when it begins to wait."""
        ...


class Filter(Protocol):
    """Which workers may get a request."""

    def passes(self, progress: Progress, worker: Worker) -> bool: ...


class Scorer(Protocol):
    """Which of these workers are better."""

    def score(self, progress: Progress, worker: Worker) -> float:
        """Higher is better."""
        ...


class Picker(Protocol):
    """Which one it is."""

    def pick(self, candidates: Sequence[tuple[Scores, Worker]]) -> Worker:
        """One of the candidates, of which there is at least one; they come in order of id."""
        ...
