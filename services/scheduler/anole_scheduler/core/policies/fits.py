"""A worker gets what it has room for."""

from anole_scheduler.core.request import Progress
from anole_scheduler.core.worker import Worker


class Fits:
    """It can run the request at all, and the request may be given to it now.

    A worker that still runs an older attempt at the same request does not get this one: it would
    take the two for one.
    """

    def passes(self, progress: Progress, worker: Worker) -> bool:
        return (
            worker.has_room(progress)
            and worker.can_ever_run(progress.request, progress.adapter)
            and progress.request.request_id not in worker.foreign
        )
