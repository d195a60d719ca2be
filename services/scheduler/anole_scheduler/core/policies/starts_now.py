"""Better to start at once than to wait at a worker."""

from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker


class StartsNow:
    """Work ahead is for when all workers are busy: it must not pile up beside an idle one."""

    def score(self, progress: Progress, worker: Worker) -> float:
        return float(worker.can_start(progress))
