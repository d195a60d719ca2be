"""Who may pass a request for whose adapter there is no room, and who must give way to it again."""

from collections.abc import Iterable

from anole_scheduler.core.pace import Pace
from anole_scheduler.core.request import Progress, RequestState
from anole_scheduler.core.worker import Worker
from anole_shared.ids import RequestId, WorkerId


class Bypass:
    """Chameleon's opportunistic bypass (MICRO'25, section 4.3.3).

    R2 passes R1 where R1's memory is expected to be free later than R2 is expected to have ended:
    t_mem(R1) > t_exec(R2). Where R1 would fit earlier if R2 were not there, R2 is squashed. The
    paper does not say how the two are predicted: here by the pace of what has ended, and by what
    each running request is expected to give back, in the order of their expected ends.
    """

    def __init__(self, pace: Pace, squash_share: float) -> None:
        self._pace = pace
        self._squash_share = squash_share
        self._running: dict[WorkerId, dict[RequestId, Progress]] = {}
        self._passed: dict[RequestId, list[Progress]] = {}
        """Who has passed a waiting request, the last one last."""
        self._num_admitted = 0
        self._num_squashed = 0

    def running(self, progress: Progress, worker: Worker) -> None:
        """A worker has got it."""
        self._num_admitted += 1
        self._running.setdefault(worker.worker_id, {})[progress.request.request_id] = progress

    def ended(self, progress: Progress) -> None:
        """Its worker has it no more."""
        assert progress.worker_id is not None
        at_worker = self._running[progress.worker_id]
        del at_worker[progress.request.request_id]
        if not at_worker:
            del self._running[progress.worker_id]

    def waits_longer(self, head: Progress, other: Progress, worker: Worker, now: float) -> bool:
        """Whether there is no room for head's adapter before other would have ended."""
        return self._room_in_s(head, worker, now) > self._pace.duration_s(other)

    def _room_in_s(self, head: Progress, worker: Worker, now: float) -> float:
        """t_mem: until enough has ended there; infinite where that cannot be told."""
        missing = worker.missing_bytes(head)
        running = self._running.get(worker.worker_id, {})
        ends = [
            (self._pace.left_s(progress, now), request_id)
            for request_id, progress in running.items()
            if request_id in worker.started
        ]
        for left_s, request_id in sorted(ends):
            missing -= worker.budget.freed(worker.started[request_id])
            if missing <= 0:
                return left_s
        return float("inf")

    def note(self, head: Progress, other: Progress) -> None:
        """Other has passed head."""
        self._passed.setdefault(head.request.request_id, []).append(other)

    def forget(self, head: Progress) -> None:
        """Head waits no more."""
        self._passed.pop(head.request.request_id, None)

    def victim(self, head: Progress, workers: Iterable[Worker]) -> tuple[Progress, Worker] | None:
        """Who has passed head and keeps it from starting now, if one may be squashed for it."""
        passed = self._passed.get(head.request.request_id)
        if not passed or self._num_squashed + 1 > self._squash_share * self._num_admitted:
            return None
        by_id = {worker.worker_id: worker for worker in workers}
        for other in reversed(passed):
            worker = by_id.get(other.worker_id) if other.worker_id else None
            may_go = other.state is RequestState.RUNNING and not other.was_squashed
            if worker is None or worker.reserved_for is not None or not may_go:
                continue
            if worker.fits_without(head, other.request.request_id):
                self._num_squashed += 1
                self.forget(head)
                return other, worker
        return None
