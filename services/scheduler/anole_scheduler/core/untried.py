"""Which workers a waiting request has not been offered to since something changed there."""

from collections.abc import Sequence

from anole_scheduler.core.worker import Worker
from anole_shared.ids import WorkerId


class Untried:
    """Keeps an end at one worker from asking all workers again for a head that they turned away."""

    __slots__ = ("_are_all", "_some")

    def __init__(self) -> None:
        self._are_all = True
        self._some: dict[WorkerId, Worker] = {}

    def __bool__(self) -> bool:
        """Whether there may be any."""
        return self._are_all or bool(self._some)

    def reset(self) -> None:
        """It is another request, or something has changed everywhere."""
        self._are_all = True
        self._some.clear()

    def add(self, worker: Worker) -> None:
        """Something has changed at one worker."""
        if not self._are_all:
            self._some[worker.worker_id] = worker

    def take(self, workers: Sequence[Worker]) -> Sequence[Worker]:
        """Those of the workers that are to be tried, in order of id; from now on they are tried."""
        chosen: Sequence[Worker] = workers
        if not self._are_all:
            chosen = [worker for _, worker in sorted(self._some.items())]
        self._are_all = False
        self._some.clear()
        return chosen
