"""The world around a scheduler's core: broker, gateways, and workers, which may misbehave."""

from collections import deque
from dataclasses import replace

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
from anole_scheduler.core.events import Event, RequestArrived, SequenceEnded, WorkerGone
from anole_scheduler.core.knobs import PolicyKnobs
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.policies.standard import policies
from anole_scheduler.core.predictor import Predictor
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.scheduler import Scheduler
from anole_shared.ids import RequestId
from tests.unit.scheduler.fake_worker import FakeWorker
from tests.unit.scheduler.playbook import adapter

Attempt = tuple[str, int]

ADAPTERS = (
    adapter("a"),
    adapter("b", rank=64),
    adapter("c", size_bytes=20, rank=16),
    adapter("huge", size_bytes=10**9),
)


class HalfPredictor:
    """Wrong in a way that can be repeated."""

    def predict(self, request: Request) -> int:
        return (request.max_tokens + 1) // 2

    def learn(self, request: Request, num_output_tokens: int, now: float) -> None:
        assert num_output_tokens <= request.max_tokens


class SchedulerWorld:
    """Carries out what the scheduler decides, and asserts what it must never decide."""

    policy: str

    def open_world(self, limits: Limits, knobs: PolicyKnobs, predictor: Predictor) -> None:
        self.limits, self.knobs, self.predictor = limits, knobs, predictor
        self.now = 0.0
        self.queue: deque[Event] = deque()
        self.workers: dict[str, FakeWorker] = {}
        self.num_requests = 0
        self.num_workers = 0
        self.unanswered: dict[str, Request] = {}  # what gateways wait for
        self.unacknowledged: dict[Attempt, Request] = {}  # what the broker keeps, in order
        self.undelivered: set[Attempt] = set()
        self.answered: set[Attempt] = set()  # ended by a worker
        self.acknowledged: dict[Attempt, Request] = {}  # by the present scheduler
        self.start_scheduler()

    def start_scheduler(self) -> None:
        chosen = policies(self.policy, self.knobs)
        self.scheduler = Scheduler(self.limits, chosen, ADAPTERS, predictor=self.predictor)
        self.squashed: set[str] = set()
        self.started_s = self.now
        self.known: set[Attempt] = set()
        self.waiting: set[Attempt] = set()
        self.acknowledged.clear()

    # The broker.

    def publish(self, request: Request) -> None:
        key = (request.request_id, request.attempt)
        self.unacknowledged[key] = request
        self.undelivered.add(key)
        self.queue.append(RequestArrived(request=request))

    def deliver(self) -> None:
        event = self.queue.popleft()
        if isinstance(event, RequestArrived):
            request = event.request
            key = (request.request_id, request.attempt)
            if key not in self.unacknowledged:
                return  # a second delivery over a connection that is gone
            self.undelivered.discard(key)
            if key not in self.known:
                self.known.add(key)
                self.waiting.add(key)
        self.hear(event)

    def deliver_all(self) -> None:
        while self.queue:
            self.deliver()

    def hear(self, event: Event) -> None:
        for command in self.scheduler.handle(event, self.now):
            self.carry_out(command)
        self.scheduler.check_invariants()

    # What is decided.

    def carry_out(self, command: Command) -> None:
        match command:
            case Admit():
                self.admit(command)
            case Adopt(request=request):
                self.waiting.remove((request.request_id, request.attempt))
            case AbortSequence():
                self.abort(command)
            case Fail():
                self.fail(command)
            case Done():
                key = (command.request_id, command.attempt)
                assert key in self.unacknowledged, "acknowledged twice"
                assert key not in self.undelivered, "acknowledged before it came"
                self.acknowledged[key] = self.unacknowledged.pop(key)
                self.waiting.discard(key)
            case Prefetch():
                worker = self.workers.get(command.worker_id)
                if worker is not None and command.adapter_id not in worker.resident:
                    worker.loading.add(command.adapter_id)
                    self.queue.append(worker.moved(command.adapter_id, Residency.LOADING))
            case _:
                pass

    def admit(self, command: Admit) -> None:
        request = command.request
        key = (request.request_id, request.attempt)
        assert key in self.unacknowledged
        assert key not in self.answered, "run again after its end"
        self.waiting.remove(key)
        if self.policy == "fcfs":
            turn = self.turn(request.request_id)
            known = self.scheduler._ledger.requests
            waiting = (self.turn(name) for name, _ in self.waiting if name in known)
            assert all(turn < other for other in waiting), "passed one that came before"
        for other in self.workers.values():
            holds = other.sequences.get(request.request_id)
            assert holds is None or holds.attempt != request.attempt, "run twice at once"
        worker = self.workers.get(command.worker_id)
        if worker is None:
            self.queue.appendleft(WorkerGone(worker_id=command.worker_id, reason="unroutable"))
            return
        if worker.loses_next:
            worker.loses_next = False
            return
        assert request.request_id not in worker.sequences, "the worker would take it for a copy"
        assert request.max_len <= worker.longest(request)
        worker.sequences[request.request_id] = request
        assert len(worker.sequences) <= worker.capacity.max_num_seqs + self.limits.admit_ahead
        mirror = self.scheduler._cluster.get(command.worker_id)
        if mirror is not None and not mirror.foreign:  # what those hold can only be guessed
            assert len(worker.sequences) - len(worker.started()) <= self.limits.admit_ahead
        if request.adapter_id is not None and request.adapter_id not in worker.resident:
            worker.resident.add(request.adapter_id)
            self.queue.append(worker.moved(request.adapter_id, Residency.RESIDENT))

    def turn(self, request_id: str) -> tuple[float, str]:
        """A later attempt keeps the place of the first."""
        return self.scheduler._ledger.requests[RequestId(request_id)].first_arrived_s, request_id

    def abort(self, command: AbortSequence) -> None:
        """The worker ends it some time later: a step may be running with it."""
        worker = self.workers.get(command.worker_id)
        if worker is not None and command.request_id in worker.sequences:
            worker.aborting.add(command.request_id)

    def end_aborted(self, worker: FakeWorker) -> None:
        for name in sorted(worker.aborting):
            self.leave(worker, worker.sequences[name], was_finished=False)

    def leave(self, worker: FakeWorker, sequence: Request, *, was_finished: bool = True) -> None:
        del worker.sequences[sequence.request_id]
        worker.aborting.discard(sequence.request_id)
        self.queue.append(
            SequenceEnded(
                worker_id=worker.name,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                num_output_tokens=sequence.max_tokens if was_finished else 0,
                was_finished=was_finished,
            )
        )

    def fail(self, command: Fail) -> None:
        """The gateway sends again what was lost, and passes any other failure on."""
        request = command.request
        expected = self.unanswered.get(request.request_id)
        if expected is None or expected.attempt != request.attempt:
            return
        if command.failure is Failure.SQUASHED:
            assert request.request_id not in self.squashed, "squashed twice"
            self.squashed.add(request.request_id)
        if command.failure in {Failure.WORKER_LOST, Failure.SQUASHED}:
            again = replace(request, attempt=request.attempt + 1)
            self.unanswered[request.request_id] = again
            self.publish(again)
        else:
            del self.unanswered[request.request_id]

    def answer(self, worker: FakeWorker, sequence: Request) -> None:
        self.answered.add((sequence.request_id, sequence.attempt))
        expected = self.unanswered.get(sequence.request_id)
        if expected is not None and expected.attempt == sequence.attempt:
            del self.unanswered[sequence.request_id]
        self.leave(worker, sequence)

    def end_loads(self, worker: FakeWorker, *, is_there: bool) -> None:
        for adapter_id in sorted(worker.loading - worker.resident):
            self.queue.append(
                worker.moved(adapter_id, Residency.RESIDENT if is_there else Residency.ABSENT)
            )
        worker.resident |= worker.loading if is_there else set()
        worker.loading.clear()
