"""A worker gets what it has room for."""

from anole_scheduler.core.request import Request
from anole_scheduler.core.worker import Worker


class Fits:
    """It can run the request at all, and the request may be given to it now.

    A worker that still runs an older attempt at the same request does not get this one: it would
    take the two for one.
    """

    def passes(self, request: Request, worker: Worker) -> bool:
        return (
            worker.has_room(request)
            and worker.can_ever_run(request)
            and request.request_id not in worker.foreign
        )
