"""Every attempt that has not ended: where it stands, and how it ends."""

from anole_scheduler.core.cluster import Cluster
from anole_scheduler.core.commands import AbortSequence, Admit, Adopt, Command, Done, Fail, Failure
from anole_scheduler.core.ended import EndedRequests
from anole_scheduler.core.queues import WaitingQueue
from anole_scheduler.core.refusal import Refusal
from anole_scheduler.core.request import Progress, RequestState
from anole_scheduler.core.worker import Worker
from anole_shared.ids import RequestId


class Ledger:
    """Changes a request's state, its place and the commands that go with it, all at once."""

    def __init__(self, queue: WaitingQueue, cluster: Cluster, ended: EndedRequests) -> None:
        self.queue = queue
        self.ended = ended
        self.requests: dict[RequestId, Progress] = {}
        """In order of arrival."""
        self.commands: list[Command] = []
        """What the event at hand has led to so far."""
        self._cluster = cluster

    def worker_of(self, progress: Progress) -> Worker | None:
        """Where the request runs, None while it waits."""
        return self._cluster.get(progress.worker_id) if progress.worker_id else None

    def open(self, progress: Progress) -> None:
        """Take up a new attempt; it neither waits nor runs yet."""
        assert progress.request.request_id not in self.requests
        self.requests[progress.request.request_id] = progress

    def start(self, progress: Progress, worker: Worker, now: float) -> None:
        """Give a waiting request to a worker."""
        request, residency = progress.request, None
        if request.adapter_id is not None:
            residency = worker.residency(request.adapter_id)
            worker.expect(request.adapter_id, now)
        self._run_on(progress, worker, now)
        self.commands.append(
            Admit(worker_id=worker.worker_id, request=request, residency=residency)
        )

    def adopt(self, progress: Progress, worker: Worker, now: float) -> None:
        """The worker runs the request already."""
        worker.forget_foreign(progress.request.request_id)
        self._run_on(progress, worker, now)
        self.commands.append(Adopt(worker_id=worker.worker_id, request=progress.request))

    def _run_on(self, progress: Progress, worker: Worker, now: float) -> None:
        self._leave_queue(progress)
        worker.admit(progress.request)
        progress.move_to(RequestState.RUNNING)
        progress.worker_id = worker.worker_id
        progress.admitted_s = now

    def take_back(self, progress: Progress) -> None:
        """Its worker has not begun it and gives it back: it waits again, at its old place."""
        worker = self.worker_of(progress)
        assert worker is not None
        if progress.state is RequestState.ABORTING:
            self.end(progress, RequestState.ABORTED)
            return
        worker.release(progress.request.request_id)
        progress.move_to(RequestState.WAITING)
        progress.worker_id = None
        self.queue.push(progress)

    def cancel(self, progress: Progress, reason: str) -> None:
        """Nobody waits for it any more: it ends, once its worker has let go of it."""
        if progress.state is RequestState.ABORTING:
            return
        worker = self.worker_of(progress)
        if worker is None:
            self.end(progress, RequestState.ABORTED)
            return
        progress.move_to(RequestState.ABORTING)
        self.commands.append(
            AbortSequence(
                worker_id=worker.worker_id,
                request_id=progress.request.request_id,
                reason=reason,
            )
        )

    def supersede(self, progress: Progress, now: float) -> None:
        """End an attempt at once because a later one is here."""
        worker = self.worker_of(progress)
        if worker is None:
            self.end(progress, RequestState.ABORTED)
            return
        self.cancel(progress, "its gateway has sent a later attempt")
        worker.disown(progress.request, now)
        self.end(progress, RequestState.ABORTED)

    def fail(self, progress: Progress, refusal: Refusal) -> None:
        """Tell the gateway that there is no (further) answer."""
        self.commands.append(
            Fail(
                request=progress.request,
                failure=refusal.failure,
                message=refusal.message,
                retry_after_s=refusal.retry_after_s,
            )
        )
        self.end(progress, RequestState.FAILED)

    def lose(self, progress: Progress, reason: str) -> None:
        """The worker does not have the request any more, and did not end it."""
        if progress.state is RequestState.ABORTING:
            self.end(progress, RequestState.ABORTED)
            return
        message = f"{reason}; the request can be sent again"
        self.fail(progress, Refusal(failure=Failure.WORKER_LOST, message=message))

    def end(self, progress: Progress, state: RequestState) -> None:
        """The attempt is over; it gives back what it holds."""
        request_id, attempt = progress.request.request_id, progress.request.attempt
        worker = self.worker_of(progress)
        if worker is not None and worker.has(request_id):
            worker.release(request_id)
        self._leave_queue(progress)
        progress.move_to(state)
        del self.requests[request_id]
        self.ended.add(request_id, attempt)
        self.commands.append(Done(request_id=request_id, attempt=attempt))

    def _leave_queue(self, progress: Progress) -> None:
        if progress.request.request_id in self.queue:
            self.queue.remove(progress.request.request_id)

    def check_invariants(self) -> None:
        """Assert that every request either waits once or is at one worker."""
        self.queue.check_invariants()
        admitted = [r for worker in self._cluster.workers for r in worker.admitted()]
        assert len(admitted) == len(set(admitted)), "a request is at two workers"
        for request_id, progress in self.requests.items():
            is_waiting = progress.state is RequestState.WAITING
            is_running = progress.state in {RequestState.RUNNING, RequestState.ABORTING}
            worker = self.worker_of(progress)
            assert progress.request.request_id == request_id
            assert is_waiting or is_running, "an ended request is kept"
            assert (request_id in self.queue) == is_waiting
            assert (worker is not None and worker.has(request_id)) == is_running
            assert not self.ended.covers(request_id, progress.request.attempt)
        assert len(admitted) + len(self.queue) == len(self.requests)
