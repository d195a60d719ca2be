"""Better where the adapter is already."""

from anole_scheduler.core.request import Progress
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.worker import Worker

_SCORES = {Residency.RESIDENT: 2.0, Residency.LOADING: 1.0, Residency.ABSENT: 0.0}


class AdapterAffinity:
    """Resident before loading before absent; the base model is everywhere."""

    def score(self, progress: Progress, worker: Worker) -> float:
        if progress.request.adapter_id is None:
            return 0.0
        return _SCORES[worker.residency(progress.request.adapter_id)]
