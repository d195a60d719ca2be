"""Better where less is promised."""

from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker


class LeastLoaded:
    """The smallest share of promised memory."""

    def score(self, progress: Progress, worker: Worker) -> float:  # noqa: ARG002
        return -worker.load
