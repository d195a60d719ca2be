"""A worker that is about to leave gets nothing more."""

from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker


class Stays:
    """It does not drain."""

    def passes(self, progress: Progress, worker: Worker) -> bool:  # noqa: ARG002
        return not worker.is_draining
