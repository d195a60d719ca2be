"""Any order of arrivals, aborts, loads and steps keeps the engine's invariants; all ends.

Memory is so short that it is full most of the time: sequences grow by taking what adapters hold,
adapters come by taking what is cached, and the youngest sequences wait again. Beside the engine a
model of the device is kept: what each block holds, which blocks and adapters take memory.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anole_shared.ids import RequestId
from anole_worker.core.adapter import Adapter
from anole_worker.core.engine import Engine
from anole_worker.core.loading import LoadAdapter
from anole_worker.core.pace import FixedPace, LearntPace, Pace
from anole_worker.core.prefetch import ArrivalHistogram
from anole_worker.core.residency import Residency
from anole_worker.core.step import Row, Step
from anole_worker.core.step_budget import StepBudget
from tests.unit.worker.engines import (
    BLOCK_SIZE,
    EOS,
    SIZES,
    adapter,
    draw,
    make_engine,
    make_sequence,
)

Content = tuple[Adapter | None, tuple[int, ...]]
"""What a slot's keys and values depend on: the adapter, and all tokens up to its own."""

BUDGET = 36
BLOCK_BYTES = 2
TOKEN_BUDGET = 6


class Device:
    """What a real one would hold: for each slot of a block what was written there last."""

    def __init__(self, engine: Engine) -> None:
        self.memory = engine.memory
        self.slots: dict[tuple[int, int], Content] = {}
        self.adapters: set[Adapter] = set()

    def run(self, row: Row, tokens: list[int]) -> None:
        """Write the row's keys and values; all that it attends to must be what it means."""
        assert row.adapter is None or row.adapter in self.adapters
        for position in range(row.start + len(row.token_ids)):
            slot = (row.block_table[position // BLOCK_SIZE], position % BLOCK_SIZE)
            content = (row.adapter, tuple(tokens[: position + 1]))
            if position >= row.start:
                self.slots[slot] = content
            assert self.slots.get(slot) == content, f"{row.request_id} reads another's {slot}"

    def give_back(self, blocks: tuple[int, ...]) -> None:
        for slot in [slot for slot in self.slots if slot[0] in blocks]:
            del self.slots[slot]

    @property
    def used_bytes(self) -> int:
        blocks = {block for block, _ in self.slots}
        return len(blocks) * BLOCK_BYTES + sum(a.num_bytes for a in self.adapters)


class EngineMachine(RuleBasedStateMachine):
    @staticmethod
    def pace() -> Pace:
        return FixedPace(TOKEN_BUDGET)

    def __init__(self) -> None:
        super().__init__()
        self.engine = make_engine(
            budget_bytes=BUDGET,
            block_bytes=BLOCK_BYTES,
            token_budget=TOKEN_BUDGET,
            predictor=ArrivalHistogram(10),
            pace=self.pace(),
        )
        self.device = Device(self.engine)
        self.now = 0.0
        self.step: Step | None = None
        self.loading: list[LoadAdapter] = []
        self.live: set[str] = set()
        self.count = 0

    @rule(
        name=st.sampled_from([None, *SIZES]),
        generation=st.sampled_from("12"),
        stem=st.integers(0, 9),
        tail=st.lists(st.integers(10, 12), min_size=1, max_size=4),
        max_tokens=st.integers(1, 9),
        is_scoring=st.booleans(),
    )
    def arrive(
        self,
        name: str | None,
        generation: str,
        stem: int,
        tail: list[int],
        max_tokens: int,
        is_scoring: bool,
    ) -> None:
        """Prompts begin alike, so that much of them is shared."""
        self.count += 1
        sequence = make_sequence(
            f"r{self.count}",
            prompt=[*range(20, 20 + stem), *tail],
            max_tokens=max_tokens,
            arrived_s=self.now,
            prompt_logprobs=0 if is_scoring else None,
        )
        if name is not None:
            sequence.adapter = adapter(name, generation=generation)
        if self.engine.refusal(sequence) is None:
            self.engine.add(sequence, self.now)
            self.live.add(sequence.request_id)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        if self.engine.abort(RequestId(name), self.now) is not None:
            self.live.remove(name)

    @precondition(lambda self: self.step is None)
    @rule()
    def plan_loads(self) -> None:
        self.loading += self.engine.plan_loads(self.now)
        self.device.give_back(self.engine.memory.collect_stripped())

    @rule(name=st.sampled_from(sorted(SIZES)), generation=st.sampled_from("12"))
    def prefetch(self, name: str, generation: str) -> None:
        self.engine.prefetch(adapter(name, generation=generation), self.now)

    @rule(name=st.sampled_from(sorted(SIZES)))
    def replace(self, name: str) -> None:
        self.engine.retire(adapter(name, generation="1"))

    @precondition(lambda self: self.loading)
    @rule(succeeds=st.booleans(), num_dropped=st.integers(0, 4))
    def end_load(self, succeeds: bool, num_dropped: int) -> None:
        """A load that fails may have given back the memory of all, some or none of its victims."""
        load = self.loading.pop(0)
        assert load.adapter not in self.device.adapters
        assert self.device.adapters.issuperset(load.evict)
        if succeeds:
            self.device.adapters.difference_update(load.evict)
            self.device.adapters.add(load.adapter)
            self.engine.adapter_loaded(load.adapter)
            return
        self.device.adapters.difference_update(load.evict[:num_dropped])
        for sequence in self.engine.adapter_failed(load.adapter, self.now):
            self.live.remove(sequence.request_id)
        self.device.adapters.difference_update(self.engine.take_back(load.evict[num_dropped:]))

    @precondition(lambda self: self.step is None)
    @rule()
    def plan_step(self) -> None:
        self.step = self.engine.plan_step(self.now)
        self.device.adapters.difference_update(self.engine.memory.collect_evicted())
        if self.step is None:
            return
        assert sum(len(row.token_ids) for row in self.step.rows) <= TOKEN_BUDGET
        by_id = {s.request_id: s for s in self.engine.sequences}
        computed: list[Content] = []
        for row in self.step.rows:
            tokens = by_id[row.request_id].token_ids
            self.device.run(row, tokens)
            if row.score is None:
                computed += _whole_blocks(row, tokens)
        assert len(computed) == len(set(computed)), "two rows compute the same block"

    @precondition(lambda self: self.step is not None)
    @rule(token_id=st.sampled_from([5, 11, EOS]), breaks=st.booleans())
    def end_step(self, token_id: int, breaks: bool) -> None:
        assert self.step is not None
        step, self.step = self.step, None
        if breaks:
            for sequence in self.engine.fail_step(self.now):
                self.live.remove(sequence.request_id)
            return
        for output in self.engine.complete_step(draw(step, token_id), self.now):
            sequence = output.sequence
            is_first = output.token_id is not None and sequence.num_output_tokens == 1
            if is_first and sequence.prompt_logprobs is not None:
                told = [-scored.logprob for scored in output.prompt_logprobs]
                assert told == sequence.token_ids[1 : sequence.num_given_tokens]
            if output.ending is not None:
                self.live.remove(sequence.request_id)

    @rule(num_bytes=st.integers(-1, 2 * BUDGET))
    def give_up(self, num_bytes: int) -> None:
        """The host asks for memory: idle adapters go, none that runs or is waited for."""
        waited_for = {s.adapter for s in self.engine.sequences}
        idle = set(self.engine.memory.adapters.adapters(Residency.RESIDENT))
        gone = self.engine.give_up(num_bytes, self.now)
        assert set(gone) <= idle - waited_for
        assert all(sum(a.num_bytes for a in gone) - one.num_bytes < num_bytes for one in gone)
        if sum(a.num_bytes for a in gone) < num_bytes:
            left = set(self.engine.memory.adapters.adapters(Residency.RESIDENT))
            assert all(
                self.engine.memory.adapters.is_pinned(a) or a in waited_for or self.is_hinted(a)
                for a in left
            )
        self.device.adapters.difference_update(gone)

    def is_hinted(self, one: Adapter) -> bool:
        return one in self.engine._loading._hints

    @rule(seconds=st.sampled_from([0.1, 5.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def holds(self) -> None:
        self.engine.check_invariants()
        assert {s.request_id for s in self.engine.sequences} == self.live
        leaving = {victim for load in self.loading for victim in load.evict}
        resident = set(self.engine.memory.adapters.adapters(Residency.RESIDENT))
        assert self.device.adapters - leaving <= resident <= self.device.adapters
        assert len(self.loading) <= self.engine.limits.max_loads
        assert self.device.used_bytes - sum(a.num_bytes for a in leaving - resident) <= BUDGET

    def teardown(self) -> None:
        """Whatever is left ends if loads and steps go on."""
        for _ in range(600):
            if self.step is not None:
                self.end_step(5, False)
            self.plan_loads()
            while self.loading:
                self.end_load(True, 0)
            self.plan_step()
            self.now += 1
            if not self.live:
                break
        assert not self.live
        assert self.engine.memory.blocks.num_owned == 0


def _whole_blocks(row: Row, tokens: list[int]) -> list[Content]:
    """The blocks that a prompt chunk fills from their first slot on, the last token's aside."""
    end = row.start + len(row.token_ids)
    if len(row.token_ids) == 1:
        return []
    first = -(-row.start // BLOCK_SIZE)
    last = min(end, len(tokens) - 1) // BLOCK_SIZE
    return [(row.adapter, tuple(tokens[: (i + 1) * BLOCK_SIZE])) for i in range(first, last)]


class LearningEngineMachine(EngineMachine):
    @staticmethod
    def pace() -> Pace:
        """Steps take whatever wait() makes of them, so that it learns nonsense."""
        budget = StepBudget(longest_s=0.2, alone_share=0.5, min_tokens=2, max_tokens=99)
        return LearntPace(budget, token_budget=TOKEN_BUDGET)


TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLearningEngine = LearningEngineMachine.TestCase
TestLearningEngine.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
