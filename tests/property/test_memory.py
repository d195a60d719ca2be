"""Whatever is taken, loaded and given up: the ledger never promises bytes twice.

Beside it a model of the device's memory is kept, which hears only what the shell would be told.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.eviction import by_name
from anole_worker.core.memory import Memory, Wanted
from anole_worker.core.prefix import extend, root
from anole_worker.core.residency import AdapterCache, Residency
from tests.unit.worker.engines import adapter

BUDGET, BLOCK_BYTES = 47, 3
ADAPTERS = [adapter(f"a{size}", num_bytes=size) for size in (1, 3, 7, 8, 15, 20)]

adapters = st.sampled_from(ADAPTERS)
some = st.frozensets(adapters)


class MemoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.policy = by_name(60.0)["chameleon"]
        self.memory = Memory(BUDGET, BLOCK_BYTES, BlockPool(13), AdapterCache(self.policy))
        self.now = 0.0
        self.owned: list[int] = []
        self.written: set[int] = set()
        self.here: set[Adapter] = set()
        self.token = 0

    @rule(count=st.integers(1, 6), kept=some, waiting=some)
    def take(self, count: int, kept: frozenset[Adapter], waiting: frozenset[Adapter]) -> None:
        """Whether blocks can be had is told exactly, and nothing goes where they cannot."""
        wanted = Wanted(kept=kept, waiting=waiting)
        expected = self.memory.can_take(count, kept)
        before = set(self.memory.adapters.adapters(Residency.RESIDENT))
        assert self.memory.make_room(count, self.now, wanted) == expected
        evicted = set(self.memory.collect_evicted())
        assert evicted <= before - kept
        self.here -= evicted
        if not expected:
            assert not evicted
            return
        if evicted & waiting:
            unwanted = set(self.memory.adapters.adapters(Residency.RESIDENT)) - waiting - kept
            idle = {a for a in unwanted if not self.memory.adapters.is_pinned(a)}
            least = min(a.num_bytes for a in evicted & waiting)
            assert all(a.num_bytes < least for a in idle), "a wanted one went before others"
        taken = [self.memory.take_block() for _ in range(count)]
        assert not set(taken) & set(self.owned)
        self.owned += taken
        self.written |= set(taken)

    @rule(data=st.data(), of=st.sampled_from([None, *ADAPTERS]), is_known=st.booleans())
    def release(self, data: st.DataObject, of: Adapter | None, is_known: bool) -> None:
        if not self.owned:
            return
        block = data.draw(st.sampled_from(self.owned))
        self.owned.remove(block)
        if is_known:
            self.token += 1
            self.memory.blocks.publish(block, extend(root(of), [self.token]))
        self.memory.blocks.release([block], self.now)

    @rule(of=adapters, kept=some, waiting=some, spare=st.integers(0, 12), is_guess=st.booleans())
    def claim(
        self,
        of: Adapter,
        kept: frozenset[Adapter],
        waiting: frozenset[Adapter],
        spare: int,
        is_guess: bool,
    ) -> None:
        """Afterwards the spared bytes can be had for blocks, if there are so many blocks."""
        if self.memory.adapters.residency(of) is not Residency.ABSENT:
            return
        wanted = Wanted(kept=kept, waiting=waiting)
        victims: tuple[Adapter, ...] | None
        if is_guess:
            victims = () if self.memory.claim_unused(of, spare_bytes=spare) else None
        else:
            victims = self.memory.claim(of, self.now, wanted, spare_bytes=spare)
        stripped = set(self.memory.collect_stripped())
        assert not stripped & set(self.owned), "a block is both stripped and in use"
        assert stripped <= self.written
        self.written -= stripped
        if victims is None:
            assert not stripped
            return
        assert not set(victims) & kept
        self.here -= set(victims)
        blocks = self.memory.blocks
        left = self.memory.unused_bytes // BLOCK_BYTES + blocks.num_free
        assert left >= spare // BLOCK_BYTES

    @rule(succeeds=st.booleans())
    def end_load(self, succeeds: bool) -> None:
        for of in self.memory.adapters.adapters(Residency.LOADING):
            if succeeds:
                self.memory.adapters.loaded(of)
                self.here.add(of)
            else:
                self.memory.adapters.load_failed(of)

    @rule(of=adapters)
    def use(self, of: Adapter) -> None:
        self.memory.adapters.used(of, self.now)

    @rule(of=adapters, is_start=st.booleans())
    def run(self, of: Adapter, is_start: bool) -> None:
        if of not in self.here:
            return
        if is_start:
            self.memory.adapters.pin(of)
        elif self.memory.adapters.is_pinned(of):
            self.memory.adapters.unpin(of, self.now)

    @rule(of=adapters)
    def retire(self, of: Adapter) -> None:
        self.memory.adapters.retire(of)

    @rule(seconds=st.sampled_from([0.001, 1.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def holds(self) -> None:
        self.memory.check_invariants()
        loading = self.memory.adapters.adapters(Residency.LOADING)
        assert self.here == set(self.memory.adapters.adapters(Residency.RESIDENT))
        device_bytes = len(self.written) * BLOCK_BYTES + sum(a.num_bytes for a in self.here)
        assert device_bytes + sum(a.num_bytes for a in loading) == self.memory.used_bytes <= BUDGET


TestMemory = MemoryMachine.TestCase
TestMemory.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
