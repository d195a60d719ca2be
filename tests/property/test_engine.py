"""Any order of arrivals, aborts, loads and steps keeps the engine's invariants; all ends."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anole_shared.ids import AdapterId, RequestId
from anole_worker.core.engine import LoadAdapter
from anole_worker.core.step import Step
from tests.unit.worker.engines import EOS, draw, make_engine, make_sequence

ADAPTERS = {"a": 5, "b": 8, "c": 12, "d": 20}


class EngineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(sizes=ADAPTERS, adapter_budget=20, num_blocks=12, token_budget=6)
        self.now = 0.0
        self.step: Step | None = None
        self.loading: list[LoadAdapter] = []
        self.held: set[AdapterId] = set()
        self.live: set[str] = set()
        self.count = 0

    @rule(
        adapter=st.sampled_from([None, *ADAPTERS]),
        prompt=st.integers(1, 12),
        max_tokens=st.integers(1, 6),
    )
    def arrive(self, adapter: str | None, prompt: int, max_tokens: int) -> None:
        self.count += 1
        name = f"r{self.count}"
        self.engine.add(
            make_sequence(
                name, adapter=adapter, prompt=prompt, max_tokens=max_tokens, arrived_s=self.now
            )
        )
        self.live.add(name)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        if self.engine.abort(RequestId(name), self.now) is not None:
            self.live.remove(name)

    @rule()
    def plan_loads(self) -> None:
        self.loading += self.engine.plan_loads(self.now)

    @rule(adapter=st.sampled_from(sorted(ADAPTERS)))
    def prefetch(self, adapter: str) -> None:
        self.engine.prefetch(AdapterId(adapter))

    @precondition(lambda self: self.loading)
    @rule(succeeds=st.booleans(), num_dropped=st.integers(0, 4))
    def end_load(self, succeeds: bool, num_dropped: int) -> None:
        """A load that fails may have given back the memory of all, some or none of its victims."""
        load = self.loading.pop(0)
        assert load.adapter_id not in self.held
        assert self.held.issuperset(load.evict)
        if succeeds:
            self.held.difference_update(load.evict)
            self.held.add(load.adapter_id)
            self.engine.adapter_loaded(load.adapter_id)
            return
        self.held.difference_update(load.evict[:num_dropped])
        for sequence in self.engine.adapter_failed(load.adapter_id, self.now):
            self.live.remove(sequence.request_id)
        self.held.difference_update(self.engine.take_back(load.evict[num_dropped:], self.now))

    @precondition(lambda self: self.step is None)
    @rule()
    def plan_step(self) -> None:
        self.step = self.engine.plan_step(self.now)
        if self.step is not None:
            assert sum(len(row.token_ids) for row in self.step.rows) <= 6

    @precondition(lambda self: self.step is not None)
    @rule(token_id=st.sampled_from([5, EOS]), breaks=st.booleans())
    def end_step(self, token_id: int, breaks: bool) -> None:
        assert self.step is not None
        step, self.step = self.step, None
        if breaks:
            for sequence in self.engine.fail_step(self.now):
                self.live.remove(sequence.request_id)
            return
        for output in self.engine.complete_step(draw(step, token_id), self.now):
            if output.ending is not None:
                self.live.remove(output.sequence.request_id)

    @rule(seconds=st.sampled_from([0.1, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def holds(self) -> None:
        self.engine.check_invariants()
        assert {s.request_id for s in self.engine.sequences} == self.live
        leaving = {victim for load in self.loading for victim in load.evict}
        assert self.held - leaving <= set(self.engine.adapters.resident()) <= self.held

    def teardown(self) -> None:
        """Whatever is left ends if loads and steps go on."""
        for _ in range(400):
            if self.step is not None:
                self.end_step(5, False)
            self.plan_loads()
            while self.loading:
                self.end_load(True, 0)
            self.plan_step()
            self.now += 1
        assert not self.live
        assert self.engine.blocks.num_free == self.engine.blocks.num_blocks


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
