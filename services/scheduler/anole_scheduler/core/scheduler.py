"""Decides which request runs where, and when. Pure: events and the time in, commands out."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.attendance import Attendance
from anole_scheduler.core.cluster import Cluster
from anole_scheduler.core.commands import Command, Done, Failure
from anole_scheduler.core.dispatch import Dispatcher
from anole_scheduler.core.drain import DrainRate
from anole_scheduler.core.ended import EndedRequests
from anole_scheduler.core.events import (
    AdapterMoved,
    AdaptersFound,
    Event,
    GatewayGone,
    Recalled,
    RequestArrived,
    RequestCancelled,
    SequenceEnded,
    SequenceReturned,
    Tick,
    WorkerGone,
    WorkerSeen,
)
from anole_scheduler.core.ledger import Ledger
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.placement import Placement
from anole_scheduler.core.policy import Admission
from anole_scheduler.core.predictor import MaxTokensPredictor, Predictor
from anole_scheduler.core.reconcile import can_be_running
from anole_scheduler.core.refusal import Refusal, refusal_of
from anole_scheduler.core.registry import Registry
from anole_scheduler.core.request import Progress, RequestState
from anole_scheduler.core.worker import Worker

# Short ways to members, see State.
_ABORTING, _SQUASHING = RequestState.ABORTING, RequestState.SQUASHING
_ABORTED, _FINISHED = RequestState.ABORTED, RequestState.FINISHED

_SQUASHED = Refusal(
    failure=Failure.SQUASHED, message="it made room for a request that it had passed"
)

_RareEvent = (
    RequestCancelled | GatewayGone | SequenceReturned | AdaptersFound | WorkerGone | Recalled | Tick
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What can differ between two schedulers. Belongs to one of them: admission has a state."""

    admission: Admission
    """Who is next."""
    placement: Placement
    """Where it goes."""


class Scheduler:
    """All requests that have not ended, and what is believed of the workers.

    handle() is the only entrance. It never waits, and its work hardly grows with the number of
    waiting requests. Every attempt that arrives is answered by exactly one Done.
    """

    def __init__(
        self,
        limits: Limits,
        policies: Policies,
        adapters: Iterable[Adapter] = (),
        *,
        predictor: Predictor | None = None,
    ) -> None:
        """Begin without requests.

        adapters: those that an earlier scheduler has recorded.
        predictor: guesses output lengths; None takes max_tokens for them.
        """
        self._limits = limits
        self._queue = policies.admission
        self._predictor = MaxTokensPredictor() if predictor is None else predictor
        self._cluster = Cluster()
        self._registry = Registry(adapters)
        self._ended = EndedRequests(limits.max_ended)
        self._ledger = Ledger(self._queue, self._cluster, self._ended)
        self._attendance = Attendance(limits, self._cluster, self._registry, self._ledger)
        self._dispatcher = Dispatcher(
            limits, policies.placement, self._cluster, self._registry, self._ledger
        )
        self._drain = DrainRate()
        self._first_heard_s: float | None = None
        self._settled_s = float("-inf")

    @property
    def num_waiting(self) -> int:
        """Requests that no worker has."""
        return self._ledger.num_waiting

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return len(self._ledger.requests)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take in what has happened; what is to be done about it, in this order.

        now never goes back. Tick must come several times within the shortest of the limits.
        """
        ledger = self._ledger
        ledger.begin(now)
        self._take_in(event, now)
        if ledger.num_waiting > 0 and now >= self._settled_s:
            self._queue.admit(self._dispatcher, now)
            # Nobody new is among the first where a request came behind them.
            num_first = self._limits.max_prefetch
            if not isinstance(event, RequestArrived) or ledger.num_waiting <= num_first:
                self._dispatcher.look_ahead(self._queue.upcoming(num_first))
        return ledger.commands

    def _take_in(self, event: Event, now: float) -> None:
        """Believe it, and tell the policy where it is worth another try. The most frequent first.

        Who arrives makes no room.
        """
        if self._first_heard_s is None and not isinstance(event, Tick | Recalled):
            self._first_heard_s = now
        match event:
            case RequestArrived():
                self._on_arrived(event, now)
            case SequenceEnded():
                worker = self._cluster.get(event.worker_id)
                self._on_ended(event, worker, now)
                if worker is not None:
                    self._queue.room_changed(worker)
            case AdapterMoved():
                self._attendance.handle(event, now)
                self._queue.adapter_moved(event.adapter_id)
            case WorkerSeen():
                self._attendance.handle(event, now)
                worker = self._cluster.get(event.worker_id)
                if worker is not None:
                    self._queue.room_changed(worker)
            case _:
                self._take_in_rare(event, now)
                self._queue.room_changed(None)

    def _take_in_rare(self, event: _RareEvent, now: float) -> None:
        """After which there may be room anywhere."""
        match event:
            case Tick():
                self._attendance.drop_silent(now)
                self._fail_without_workers(now)
            case Recalled():
                self._attendance.recall(event, now)
            case RequestCancelled() | GatewayGone():
                self._on_cancelled(event)
            case SequenceReturned():
                self._on_returned(event)
            case _:
                self._attendance.handle(event, now)

    def _on_cancelled(self, event: RequestCancelled | GatewayGone) -> None:
        requests = self._ledger.requests
        if isinstance(event, RequestCancelled):
            if event.request_id in requests:
                self._ledger.cancel(requests[event.request_id], event.reason)
            return
        for progress in list(requests.values()):
            if progress.request.gateway_id == event.gateway_id:
                self._ledger.cancel(progress, "its gateway is gone")

    def _on_arrived(self, event: RequestArrived, now: float) -> None:
        if not self._is_news(event):
            return
        request = event.request
        progress = self._progress_of(event, now)
        self._ledger.open(progress)
        runner = self._cluster.runner_of(request.request_id) if event.redelivered else None
        if runner is not None and can_be_running(progress, self._ended):
            self._ledger.adopt(progress, runner)
            return
        refusal = refusal_of(request, self._cluster.workers, self._registry)
        if refusal is None and self._is_full(event):
            refusal = self._full(now)
        if refusal is not None:
            self._ledger.fail(progress, refusal)
            return
        progress.possible_since = self._cluster.version
        self._ledger.wait(progress)
        if event.redelivered:
            self._let_workers_speak_first(now)

    def _progress_of(self, event: RequestArrived, now: float) -> Progress:
        """A later attempt keeps the place of the first one."""
        request = event.request
        before = self._ended.get(request.request_id)
        arrived_s = before.first_arrived_s if before else None
        predicted = self._predictor.predict(request)
        return Progress(
            request=request,
            arrived_s=now,
            first_arrived_s=now if arrived_s is None else arrived_s,
            redelivered=event.redelivered,
            predicted_tokens=max(1, min(predicted, request.max_tokens)),
            adapter=self._registry.get(request.adapter_id) if request.adapter_id else None,
            was_squashed=before is not None and before.was_squashed,
        )

    def _is_news(self, event: RequestArrived) -> bool:
        """Whether the attempt is to be taken up; an older one that it replaces is ended.

        A second delivery of an attempt that waits or runs changes nothing here: the shell keeps
        the newer delivery to acknowledge.
        """
        request_id, attempt = event.request.request_id, event.request.attempt
        known = self._ledger.requests.get(request_id)
        if known is not None and attempt == known.request.attempt:
            return False
        is_older = known is not None and attempt < known.request.attempt
        if is_older or self._ended.covers(request_id, attempt):
            self._ledger.commands.append(Done(request_id=request_id, attempt=attempt))
            return False
        if known is not None:
            self._ledger.supersede(known)
        return True

    def _is_full(self, event: RequestArrived) -> bool:
        """Whether there is no place; who was accepted before needs none in the queue."""
        if self.num_unfinished > self._limits.max_unfinished:
            return True
        if self._ledger.num_waiting < self._limits.max_waiting:
            return False
        return not event.redelivered and event.request.attempt == 0

    def _full(self, now: float) -> Refusal:
        retry_after_s = self._drain.wait_s(self.num_waiting, now)
        return Refusal(
            failure=Failure.QUEUE_FULL,
            message=f"{self.num_waiting} requests wait already and no more can; try again in "
            f"about {retry_after_s:.0f} s (operators: add workers, or raise "
            "ANOLE_SCHEDULER_MAX_WAITING and _MAX_UNFINISHED)",
            retry_after_s=retry_after_s,
        )

    def _let_workers_speak_first(self, now: float) -> None:
        """Soon after a start, what comes a second time may run already: admit nothing yet."""
        assert self._first_heard_s is not None
        if now < self._first_heard_s + self._limits.settle_s:
            self._settled_s = self._first_heard_s + self._limits.settle_s

    def _on_ended(self, event: SequenceEnded, worker: Worker | None, now: float) -> None:
        if worker is not None:
            worker.forget_foreign(event.request_id)
        progress = self._ledger.requests.get(event.request_id)
        if progress is None:
            # The request itself may yet be delivered again: it has had its answer.
            self._ended.add_unknown(event.request_id, event.attempt)
            return
        is_elsewhere = progress.worker_id is not None and progress.worker_id != event.worker_id
        if is_elsewhere or event.attempt != progress.request.attempt:
            return
        self._drain.note_end(now)
        if event.was_finished:
            progress.num_output_tokens = event.num_output_tokens
            self._predictor.learn(progress.request, event.num_output_tokens, now)
        if not event.was_finished and progress.state is _SQUASHING:
            self._ledger.fail(progress, _SQUASHED)
            return
        ending = _ABORTED if progress.state is _ABORTING else _FINISHED
        self._ledger.end(progress, ending)

    def _on_returned(self, event: SequenceReturned) -> None:
        worker = self._cluster.get(event.worker_id)
        if worker is not None:
            worker.forget_foreign(event.request_id)
            # Its report, which says so as well, may come later.
            self._attendance.note_draining(worker, is_draining=True)
        progress = self._ledger.requests.get(event.request_id)
        if progress is None or progress.worker_id != event.worker_id:
            return
        if progress.request.attempt == event.attempt:
            self._ledger.take_back(progress)

    def _fail_without_workers(self, now: float) -> None:
        timeout_s = self._limits.no_worker_timeout_s
        if self._cluster.workers or now - self._cluster.empty_since_s < timeout_s:
            return
        waiting = self._ledger.requests.values()  # without workers none of them runs
        due = list(takewhile(lambda progress: now - progress.arrived_s >= timeout_s, waiting))
        refusal = Refusal(
            failure=Failure.NO_WORKER,
            message=f"no worker has been there for {timeout_s:.0f} s: start one, and check that "
            "it uses the same ANOLE_AMQP_URL as the scheduler",
            retry_after_s=max(timeout_s, 1.0),
        )
        for progress in due:
            self._ledger.fail(progress, refusal)

    def check_invariants(self) -> None:
        """Assert what must hold between any two events; looks at everything."""
        self._cluster.check_invariants()
        self._ledger.check_invariants()
        assert self.num_unfinished <= self._limits.max_unfinished
        assert len(self._ended) <= self._limits.max_ended
