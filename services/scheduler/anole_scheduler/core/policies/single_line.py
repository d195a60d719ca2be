"""One line: its head is served, or nobody."""

from anole_scheduler.core.policy import Dispatch, Ordering
from anole_scheduler.core.queues import Line
from anole_scheduler.core.request import Progress
from anole_scheduler.core.untried import Untried
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId, RequestId, WorkerId


class SingleLine:
    """Strict: a head that does not fit yet lets nobody pass. Starves nobody whose key is fixed."""

    def __init__(self, ordering: Ordering) -> None:
        self._ordering = ordering
        self._line = Line()
        self._untried = Untried()
        """Where the head was not turned away."""

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._line

    def push(self, progress: Progress, now: float) -> None:
        self._line.push(self._ordering.key(progress, now), progress)
        if self._line.head is progress:
            self._untried.reset()

    def remove(self, progress: Progress) -> None:
        if self._line.remove(progress.request.request_id):
            self._untried.reset()

    def running(self, progress: Progress, worker: Worker, now: float) -> None:
        pass

    def ended(self, progress: Progress, now: float) -> None:
        pass

    def room_changed(self, worker: Worker | None) -> None:
        if worker is None:
            self._untried.reset()
        else:
            self._untried.add(worker)

    def adapter_moved(self, adapter_id: AdapterId) -> None:
        pass

    def worker_left(self, worker_id: WorkerId) -> None:  # noqa: ARG002
        self._untried.reset()

    def admit(self, dispatch: Dispatch, now: float) -> None:  # noqa: ARG002
        """Serve the head for as long as it finds a worker, or turns out never to."""
        while self._untried.are_any and (head := self._line.head) is not None:
            dispatch.offer(head, self._untried.take(dispatch.workers))

    def upcoming(self, count: int) -> list[Progress]:
        return self._line.first(count)

    def check_invariants(self) -> None:
        self._line.check_invariants()
        self._untried.check_invariants()
