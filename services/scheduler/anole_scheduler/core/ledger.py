"""Every attempt that has not ended: where it stands, and how it ends."""

from anole_scheduler.core.cluster import Cluster
from anole_scheduler.core.commands import (
    AbortSequence,
    Admit,
    Adopt,
    Command,
    Done,
    Fail,
    Failure,
    Prefetch,
)
from anole_scheduler.core.ended import EndedRequests
from anole_scheduler.core.policy import Admission
from anole_scheduler.core.refusal import Refusal
from anole_scheduler.core.request import Progress, RequestState
from anole_scheduler.core.worker import Worker
from anole_shared.ids import RequestId

# Short ways to members, see State.
_WAITING, _RUNNING = RequestState.WAITING, RequestState.RUNNING


class Ledger:
    """Changes a request's state, its place and the commands that go with it, all at once."""

    def __init__(self, queue: Admission, cluster: Cluster, ended: EndedRequests) -> None:
        self.queue = queue
        self.ended = ended
        self.requests: dict[RequestId, Progress] = {}
        """In order of arrival."""
        self.num_waiting = 0
        """How many of them are in the queue."""
        self.commands: list[Command] = []
        """What the event at hand has led to so far."""
        self.now = 0.0
        """When the event at hand has happened."""
        self._cluster = cluster

    def begin(self, now: float) -> None:
        """Turn to the next event."""
        self.commands = []
        self.now = now

    def worker_of(self, progress: Progress) -> Worker | None:
        """Where the request runs, None while it waits."""
        return self._cluster.get(progress.worker_id) if progress.worker_id else None

    def open(self, progress: Progress) -> None:
        """Take up a new attempt; it neither waits nor runs yet."""
        assert progress.request.request_id not in self.requests
        self.requests[progress.request.request_id] = progress

    def wait(self, progress: Progress) -> None:
        """Let it wait for its turn."""
        self.queue.push(progress, self.now)
        self.num_waiting += 1

    def start(self, progress: Progress, worker: Worker) -> None:
        """Give a waiting request to a worker."""
        request, residency = progress.request, None
        if request.adapter_id is not None:
            residency = worker.expect(request.adapter_id, self.now)
        self._leave_queue(progress)
        self._run_on(progress, worker)
        self.commands.append(
            Admit(worker_id=worker.worker_id, request=request, residency=residency)
        )

    def adopt(self, progress: Progress, worker: Worker) -> None:
        """The worker runs the request already."""
        worker.forget_foreign(progress.request.request_id)
        if progress.request.request_id in self.queue:
            self._leave_queue(progress)
        self._run_on(progress, worker)
        self.commands.append(Adopt(worker_id=worker.worker_id, request=progress.request))

    def _run_on(self, progress: Progress, worker: Worker) -> None:
        worker.admit(progress)
        progress.move_to(_RUNNING)
        progress.worker_id = worker.worker_id
        progress.admitted_s = self.now
        self.queue.running(progress, worker, self.now)

    def prefetch(self, progress: Progress, worker: Worker) -> None:
        """Have the adapter of a waiting request loaded early."""
        request, adapter_id = progress.request, progress.request.adapter_id
        assert adapter_id is not None, "the base model is there"
        progress.is_prefetched = True
        worker.expect(adapter_id, self.now)
        self.commands.append(
            Prefetch(
                worker_id=worker.worker_id,
                adapter_id=adapter_id,
                request_id=request.request_id,
                attempt=request.attempt,
            )
        )

    def take_back(self, progress: Progress) -> None:
        """Its worker has not begun it and gives it back: it waits again, at its old place."""
        worker = self.worker_of(progress)
        assert worker is not None
        if progress.state is RequestState.ABORTING:
            self.end(progress, RequestState.ABORTED)
            return
        worker.release(progress.request.request_id)
        self.queue.ended(progress, self.now)
        progress.move_to(_WAITING)
        progress.worker_id = None
        self.wait(progress)

    def cancel(self, progress: Progress, reason: str) -> None:
        """Nobody waits for it any more: it ends, once its worker has let go of it."""
        if progress.state is RequestState.ABORTING:
            return
        worker = self.worker_of(progress)
        if worker is None:
            self.end(progress, RequestState.ABORTED)
            return
        was_told = progress.state is RequestState.SQUASHING
        progress.move_to(RequestState.ABORTING)
        if not was_told:
            self._abort(progress, worker, reason)

    def squash(self, progress: Progress, reason: str) -> None:
        """Have its worker stop it; when that has let go of it, its gateway sends it again."""
        worker = self.worker_of(progress)
        assert worker is not None, "only what runs can be squashed"
        assert not progress.was_squashed, "squashed twice"
        progress.move_to(RequestState.SQUASHING)
        progress.was_squashed = True
        self._abort(progress, worker, reason)

    def _abort(self, progress: Progress, worker: Worker, reason: str) -> None:
        request_id = progress.request.request_id
        self.commands.append(
            AbortSequence(worker_id=worker.worker_id, request_id=request_id, reason=reason)
        )

    def supersede(self, progress: Progress) -> None:
        """End an attempt at once because a later one is here."""
        worker = self.worker_of(progress)
        if worker is None:
            self.end(progress, RequestState.ABORTED)
            return
        self.cancel(progress, "its gateway has sent a later attempt")
        worker.disown(progress.request, self.now)
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
            num_output_tokens = progress.num_output_tokens or 0
            worker.release(request_id, progress.request.num_prompt_tokens + num_output_tokens)
        if progress.state is _WAITING and request_id in self.queue:
            self._leave_queue(progress)
        if progress.worker_id is not None:
            self.queue.ended(progress, self.now)
        progress.move_to(state)
        del self.requests[request_id]
        self.ended.add(progress)
        self.commands.append(Done(request_id=request_id, attempt=attempt))

    def _leave_queue(self, progress: Progress) -> None:
        self.queue.remove(progress)
        self.num_waiting -= 1
        worker = self._cluster.get(progress.reserved_at) if progress.reserved_at else None
        if worker is not None and worker.reserved_for == progress.request.request_id:
            worker.reserved_for = None
            self.queue.room_changed(worker)

    def check_invariants(self) -> None:
        """Assert that every request either waits once or is at one worker."""
        self.queue.check_invariants()
        admitted = [r for worker in self._cluster.workers for r in worker.admitted()]
        assert len(admitted) == len(set(admitted)), "a request is at two workers"
        for request_id, progress in self.requests.items():
            is_waiting = progress.state is _WAITING
            is_running = progress.is_at_worker
            worker = self.worker_of(progress)
            assert progress.request.request_id == request_id
            assert is_waiting or is_running, "an ended request is kept"
            assert (request_id in self.queue) == is_waiting
            assert (worker is not None and worker.has(request_id)) == is_running
            assert not self.ended.covers(request_id, progress.request.attempt)
        assert len(self.queue) == self.num_waiting
        assert len(admitted) + self.num_waiting == len(self.requests)
