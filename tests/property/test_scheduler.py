"""The scheduler's core among workers, gateways and a broker that misbehave in every legal way.

The broker keeps each request until it is acknowledged and delivers it again after a restart; a
worker may die, fall silent, come back or never get a message. Whatever happens, every request gets
its answer or an error, and no attempt runs twice.
"""

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

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
from anole_scheduler.core.events import (
    AdaptersFound,
    Event,
    RequestArrived,
    RequestCancelled,
    SequenceEnded,
    Tick,
    WorkerGone,
)
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.policies.standard import policies
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.scheduler import Scheduler
from tests.unit.scheduler.fake_worker import FakeWorker
from tests.unit.scheduler.playbook import LIMITS, adapter, request

Attempt = tuple[str, int]

ADAPTERS = (adapter("a"), adapter("b"), adapter("huge", size_bytes=10**9))
REPORT_S = 2


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        admit_ahead=st.integers(0, 2),
        max_waiting=st.integers(1, 6),
        max_unfinished=st.integers(4, 16),
        max_prefetch=st.integers(0, 2),
    )
    def begin(self, **limits: int) -> None:
        self.limits = replace(LIMITS, **limits)
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
        self.scheduler = Scheduler(self.limits, policies("fcfs"), ADAPTERS)
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
                if worker is not None:
                    self.queue.append(worker.moved(command.adapter_id, Residency.LOADING))
            case _:
                pass

    def admit(self, command: Admit) -> None:
        request = command.request
        key = (request.request_id, request.attempt)
        assert key in self.unacknowledged
        assert key not in self.answered, "run again after its end"
        self.waiting.remove(key)
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
        assert len(worker.sequences) - len(worker.started()) <= self.limits.admit_ahead
        if request.adapter_id is not None and request.adapter_id not in worker.resident:
            worker.resident.add(request.adapter_id)
            self.queue.append(worker.moved(request.adapter_id, Residency.RESIDENT))

    def turn(self, request_id: str) -> tuple[float, str]:
        """A later attempt keeps the place of the first."""
        return self.scheduler._ledger.requests[request_id].first_arrived_s, request_id

    def abort(self, command: AbortSequence) -> None:
        """The worker ends it some time later: a step may be running with it."""
        worker = self.workers.get(command.worker_id)
        if worker is not None and command.request_id in worker.sequences:
            worker.aborting.add(command.request_id)

    def end_aborted(self, worker: FakeWorker) -> None:
        for name in sorted(worker.aborting):
            self.leave(worker, worker.sequences[name])

    def leave(self, worker: FakeWorker, sequence: Request) -> None:
        del worker.sequences[sequence.request_id]
        worker.aborting.discard(sequence.request_id)
        self.queue.append(
            SequenceEnded(
                worker_id=worker.name,
                request_id=sequence.request_id,
                attempt=sequence.attempt,
                num_output_tokens=sequence.max_tokens,
            )
        )

    def fail(self, command: Fail) -> None:
        """The gateway sends again what was lost, and passes any other failure on."""
        request = command.request
        expected = self.unanswered.get(request.request_id)
        if expected is None or expected.attempt != request.attempt:
            return
        if command.failure is Failure.WORKER_LOST:
            again = replace(request, attempt=request.attempt + 1)
            self.unanswered[request.request_id] = again
            self.publish(again)
        else:
            del self.unanswered[request.request_id]

    # What happens.

    @rule(
        prompt=st.sampled_from([1, 16, 100, 200]),
        max_tokens=st.sampled_from([1, 16, 100]),
        adapter_id=st.sampled_from([None, None, "a", "b", "huge", "unheard-of"]),
    )
    def submit(self, prompt: int, max_tokens: int, adapter_id: str | None) -> None:
        self.num_requests += 1
        name = f"r{self.num_requests:03}"
        submitted = request(
            name, num_prompt_tokens=prompt, max_tokens=max_tokens, adapter_id=adapter_id
        )
        self.unanswered[name] = submitted
        self.publish(submitted)

    @rule()
    @precondition(lambda self: self.queue)
    def deliver_next(self) -> None:
        self.deliver()

    @rule(data=st.data())
    @precondition(lambda self: self.unanswered)
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.unanswered)))
        del self.unanswered[name]
        self.queue.append(RequestCancelled(request_id=name, reason="client left"))

    @rule(data=st.data())
    @precondition(lambda self: self.unacknowledged.keys() - self.undelivered)
    def deliver_again(self, data: st.DataObject) -> None:
        """The connection was lost for a moment."""
        key = data.draw(st.sampled_from(sorted(self.unacknowledged.keys() - self.undelivered)))
        self.queue.appendleft(RequestArrived(request=self.unacknowledged[key], redelivered=True))

    @rule(data=st.data())
    @precondition(lambda self: self.acknowledged)
    def lose_acknowledgement(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.acknowledged)))
        request = self.unacknowledged[key] = self.acknowledged.pop(key)
        waited_before = set(self.waiting)
        self.hear(RequestArrived(request=request, redelivered=True))
        assert key not in self.unacknowledged, "an ended request was taken up again"
        assert self.waiting == waited_before

    @rule(
        max_num_seqs=st.integers(1, 3),
        num_blocks=st.sampled_from([8, 20, 40]),
        tells_folder=st.booleans(),
    )
    @precondition(lambda self: len(self.workers) < 3)
    def start_worker(self, max_num_seqs: int, num_blocks: int, *, tells_folder: bool) -> None:
        self.num_workers += 1
        worker = FakeWorker(
            name=f"w{self.num_workers}",
            capacity=Capacity(
                max_num_seqs=max_num_seqs,
                block_size=16,
                block_bytes=10,
                memory_bytes=10 * num_blocks,
                max_model_len=280,
            ),
            adapter_bytes={known.adapter_id: known.size_bytes for known in ADAPTERS},
        )
        self.workers[worker.name] = worker
        if tells_folder:
            self.queue.append(AdaptersFound(worker_id=worker.name, adapters=ADAPTERS))
        self.queue.append(worker.report())

    @rule()
    @precondition(lambda self: any(w.aborting for w in self.workers.values()))
    def finish_aborts(self) -> None:
        for worker in self.workers.values():
            self.end_aborted(worker)

    @rule(data=st.data())
    @precondition(lambda self: self.unanswered)
    def send_again(self, data: st.DataObject) -> None:
        """A gateway gives up an attempt by itself."""
        name = data.draw(st.sampled_from(sorted(self.unanswered)))
        again = replace(self.unanswered[name], attempt=self.unanswered[name].attempt + 1)
        self.unanswered[name] = again
        self.publish(again)

    @rule(data=st.data())
    @precondition(lambda self: any(w.sequences for w in self.workers.values()))
    def finish_sequence(self, data: st.DataObject) -> None:
        busy = sorted(name for name, worker in self.workers.items() if worker.sequences)
        worker = self.workers[data.draw(st.sampled_from(busy))]
        sequence = data.draw(st.sampled_from(worker.started() or [*worker.sequences.values()]))
        self.answer(worker, sequence)

    def answer(self, worker: FakeWorker, sequence: Request) -> None:
        self.answered.add((sequence.request_id, sequence.attempt))
        expected = self.unanswered.get(sequence.request_id)
        if expected is not None and expected.attempt == sequence.attempt:
            del self.unanswered[sequence.request_id]
        self.leave(worker, sequence)

    @rule(data=st.data(), says_goodbye=st.booleans())
    @precondition(lambda self: self.workers)
    def stop_worker(self, data: st.DataObject, *, says_goodbye: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        del self.workers[name]
        if says_goodbye:
            self.queue.append(WorkerGone(worker_id=name, reason="it has stopped"))

    @rule(data=st.data())
    @precondition(lambda self: self.workers and self.now > self.started_s + LIMITS.settle_s)
    def mute_worker(self, data: st.DataObject) -> None:
        self.workers[data.draw(st.sampled_from(sorted(self.workers)))].is_muted = True

    @rule()
    def unmute_workers(self) -> None:
        for worker in self.workers.values():
            worker.is_muted = False

    @rule(data=st.data())
    @precondition(lambda self: self.workers)
    def lose_next_admission(self, data: st.DataObject) -> None:
        self.workers[data.draw(st.sampled_from(sorted(self.workers)))].loses_next = True

    @rule(data=st.data())
    @precondition(lambda self: any(w.resident for w in self.workers.values()))
    def evict_adapter(self, data: st.DataObject) -> None:
        holding = sorted(name for name, worker in self.workers.items() if worker.resident)
        worker = self.workers[data.draw(st.sampled_from(holding))]
        adapter_id = data.draw(st.sampled_from(sorted(worker.resident)))
        worker.resident.remove(adapter_id)
        self.queue.append(worker.moved(adapter_id, Residency.ABSENT))

    @rule()
    def restart_scheduler(self) -> None:
        """Everything that is not acknowledged comes again, before all that is newer."""
        self.start_scheduler()
        self.unmute_workers()
        delivered = [k for k in self.unacknowledged if k not in self.undelivered]
        again = [
            RequestArrived(request=self.unacknowledged[key], redelivered=True) for key in delivered
        ]
        newer = [
            event
            for event in self.queue
            if not (isinstance(event, RequestArrived) and event.redelivered)
        ]
        self.queue = deque([*again, *newer])

    @rule(seconds=st.sampled_from([1, 2, 12, 40]))
    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.deliver_all()
            self.now += 1.0
            for worker in self.workers.values():
                self.end_aborted(worker)
                if self.now % REPORT_S == 0 and not worker.is_muted:
                    self.queue.append(worker.report())
            self.hear(Tick())
        self.deliver_all()

    @invariant()
    def gateways_wait_only_for_what_the_broker_keeps(self) -> None:
        """No request is lost: what has no answer yet is with the broker."""
        for name, expected in getattr(self, "unanswered", {}).items():
            assert (name, expected.attempt) in self.unacknowledged

    def teardown(self) -> None:
        """Once workers answer, everything ends."""
        if not hasattr(self, "limits"):
            return
        self.unmute_workers()
        self.start_worker(max_num_seqs=4, num_blocks=40, tells_folder=True)
        for _ in range(100):
            for worker in self.workers.values():
                worker.loses_next = False
                self.end_aborted(worker)
                for sequence in worker.started():
                    self.answer(worker, sequence)
            self.pass_time(1)
        assert not self.unanswered
        assert not self.unacknowledged
        assert self.scheduler.num_unfinished == 0
        assert all(not worker.sequences for worker in self.workers.values())


pytestmark = pytest.mark.timeout(600)  # shrinking a failure takes minutes

SchedulerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.reuse, Phase.generate, Phase.shrink),  # explaining takes minutes as well
    suppress_health_check=[HealthCheck.too_slow],
)
TestScheduler = SchedulerMachine.TestCase
