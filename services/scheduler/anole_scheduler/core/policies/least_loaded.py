"""Better where less is promised."""

from anole_scheduler.core.request import Request
from anole_scheduler.core.worker import Worker


class LeastLoaded:
    """The smallest share of promised blocks."""

    def score(self, request: Request, worker: Worker) -> float:  # noqa: ARG002
        return -worker.load
