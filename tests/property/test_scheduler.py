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

from anole_scheduler.core.events import (
    AdaptersFound,
    GatewayGone,
    RequestArrived,
    RequestCancelled,
    Tick,
    WorkerGone,
)
from anole_scheduler.core.knobs import ChargeRule, ClassRule, PolicyKnobs
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.policies.standard import ADMISSIONS
from anole_scheduler.core.predictor import MaxTokensPredictor
from anole_scheduler.core.residency import Residency
from anole_shared.ids import GatewayId
from tests.property.scheduler_world import ADAPTERS, HalfPredictor, SchedulerWorld
from tests.unit.scheduler.fake_worker import FakeWorker
from tests.unit.scheduler.playbook import LIMITS, request

REPORT_S = 2


KNOBS = PolicyKnobs(
    min_sample=4, refresh_s=10.0, slo_s=4.0, patience_s=8.0, squash_share=1.0, gamma=2.0
)
"""Classes, quotas, patience and squashes in a world as small and short as this one."""


class SchedulerMachine(SchedulerWorld, RuleBasedStateMachine):
    @initialize(
        charge_rule=st.sampled_from(ChargeRule),
        class_rule=st.sampled_from(ClassRule),
        guesses=st.booleans(),
        admit_ahead=st.sampled_from([0, 0, 1, 2]),
        max_waiting=st.integers(1, 6),
        max_unfinished=st.integers(4, 16),
        max_prefetch=st.integers(0, 2),
        max_loads=st.integers(1, 2),
    )
    def begin(
        self, charge_rule: ChargeRule, class_rule: ClassRule, *, guesses: bool, **limits: int
    ) -> None:
        self.open_world(
            replace(LIMITS, **limits),
            replace(KNOBS, charge_rule=charge_rule, class_rule=class_rule),
            HalfPredictor() if guesses else MaxTokensPredictor(),
        )

    # What happens.

    @rule(
        prompt=st.sampled_from([1, 16, 100, 200]),
        max_tokens=st.sampled_from([1, 16, 100]),
        adapter_id=st.sampled_from([None, "a", "a", "b", "b", "c", "huge", "unheard-of"]),
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

    @rule()
    @precondition(lambda self: self.unanswered)
    def lose_gateway(self) -> None:
        """All requests are of one gateway here; it may submit others later."""
        self.unanswered.clear()
        self.queue.append(GatewayGone(gateway_id=GatewayId("g1")))

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
        max_num_seqs=st.integers(1, 4),
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
            predict=self.predictor.predict,
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

    @rule(data=st.data())
    @precondition(lambda self: self.workers)
    def drain_worker(self, data: st.DataObject) -> None:
        """It goes on with what has started and gives the rest back; its report may come later."""
        self.queue += self.workers[data.draw(st.sampled_from(sorted(self.workers)))].drain()

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

    @rule(data=st.data(), is_there=st.booleans())
    @precondition(lambda self: any(w.loading for w in self.workers.values()))
    def end_load(self, data: st.DataObject, *, is_there: bool) -> None:
        loading = sorted(name for name, worker in self.workers.items() if worker.loading)
        self.end_loads(self.workers[data.draw(st.sampled_from(loading))], is_there=is_there)

    @rule(data=st.data(), num_blocks=st.integers(0, 8))
    @precondition(lambda self: self.workers)
    def overrun(self, data: st.DataObject, num_blocks: int) -> None:
        """Answers are longer than predicted; or it ends again."""
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.workers[name].overrun_blocks = num_blocks

    @rule(recalls=st.booleans())
    def restart_scheduler(self, *, recalls: bool) -> None:
        """Everything that is not acknowledged comes again, before all that is newer."""
        self.start_scheduler()
        if recalls:
            self.recall()
        self.unmute_workers()
        delivered = [k for k in self.unacknowledged if k not in self.undelivered]
        again = [
            RequestArrived(request=self.unacknowledged[key], redelivered=True) for key in delivered
        ]
        newer = [event for event in self.queue if not getattr(event, "redelivered", False)]
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
                worker.overrun_blocks = 0
                self.end_aborted(worker)
                for sequence in worker.started():
                    self.answer(worker, sequence)
            self.pass_time(1)
        assert not self.unanswered
        assert not self.unacknowledged
        assert self.scheduler.num_unfinished == 0
        assert all(not worker.sequences for worker in self.workers.values())


pytestmark = pytest.mark.timeout(600)  # shrinking a failure takes minutes

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=60,
    deadline=None,
    phases=(Phase.reuse, Phase.generate, Phase.shrink),  # explaining takes minutes as well
    suppress_health_check=[HealthCheck.too_slow],
)


class FirstComeFirstServed(SchedulerMachine):
    policy = "fcfs"


class ShortestFirst(SchedulerMachine):
    policy = "sjf"


class Chameleon(SchedulerMachine):
    policy = "chameleon"


class Anole(SchedulerMachine):
    policy = "anole"


def test_every_policy_is_tried() -> None:
    assert {machine.policy for machine in SchedulerMachine.__subclasses__()} == set(ADMISSIONS)


for machine in SchedulerMachine.__subclasses__():
    machine.TestCase.settings = SETTINGS
TestFirstComeFirstServed = FirstComeFirstServed.TestCase
TestShortestFirst = ShortestFirst.TestCase
TestChameleon = Chameleon.TestCase
TestAnole = Anole.TestCase
