"""Which workers a waiting request has not been offered to since something changed there."""

from collections.abc import Sequence

from anole_scheduler.core.worker import Worker
from anole_shared.ids import WorkerId


class Untried:
    """Keeps an end at one worker from asking all workers again for a head that they turned away."""

    __slots__ = ("_are_all", "_some", "are_any")

    def __init__(self) -> None:
        self.are_any = True
        """Whether there may be any."""
        self._are_all = True
        self._some: dict[WorkerId, Worker] = {}

    def reset(self) -> None:
        """It is another request, or something has changed everywhere."""
        self.are_any = self._are_all = True
        self._some.clear()

    def add(self, worker: Worker) -> None:
        """Something has changed at one worker."""
        if not self._are_all:
            self._some[worker.worker_id] = worker
            self.are_any = True

    def take(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Those of the workers that are open and to be tried, in order of id.

        From now on all are tried: one that is not open turns everybody away.
        """
        if self._are_all:
            chosen = [worker for worker in workers if worker.is_open]
        else:
            chosen = [worker for _, worker in sorted(self._some.items()) if worker.is_open]
        self.are_any = self._are_all = False
        self._some.clear()
        return chosen

    def check_invariants(self) -> None:
        """What is kept for speed agrees with what it is made of; for tests."""
        assert self.are_any == (self._are_all or bool(self._some))
        assert not (self._are_all and self._some)
