"""Whatever is loaded, fails and is given up: copies stay within their budget, and none is lost."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import by_name
from anole_worker.core.host_tier import HostTier
from tests.unit.worker.engines import adapter

BUDGET = 30
ADAPTERS = [
    adapter(name, num_bytes=size, generation=generation)
    for name, size in (("a", 1), ("b", 7), ("c", 13), ("d", 20), ("e", 40))
    for generation in ("1", "2")
]


class HostTierMachine(RuleBasedStateMachine):
    """Beside the tier, the regions that the shell holds: it hears only what the shell is told."""

    def __init__(self) -> None:
        super().__init__()
        self.tier = HostTier(BUDGET, by_name(60.0)["chameleon"])
        self.now = 0.0
        self.regions: set[Adapter] = set()
        self.reading: set[Adapter] = set()
        self.uploading: set[Adapter] = set()

    @rule(of=st.sampled_from(ADAPTERS))
    def begin(self, of: Adapter) -> None:
        if of in self.reading | self.uploading:
            return
        had_copy = of in self.tier
        older = {a for a in self.idle() if a.adapter_id == of.adapter_id and a != of}
        gone = set(self.tier.begin(of, self.now))
        self.release(gone)
        assert of not in gone
        if had_copy:
            assert not gone
            self.uploading.add(of)
            return
        self.reading.add(of)
        assert not gone or gone >= older, "an old content outlived a current one"

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), succeeds=st.booleans())
    def read(self, data: st.DataObject, succeeds: bool) -> None:
        of = data.draw(st.sampled_from(sorted(self.reading, key=str)))
        self.reading.remove(of)
        if succeeds:
            self.tier.read(of)
            self.regions.add(of)
            self.uploading.add(of)
        else:
            self.tier.failed(of)

    @precondition(lambda self: self.uploading)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        of = data.draw(st.sampled_from(sorted(self.uploading, key=str)))
        self.uploading.remove(of)
        self.release(set(self.tier.end(of, self.now)))

    @rule()
    def spare(self) -> None:
        idle = self.idle()
        gone = self.tier.spare(self.now)
        assert (gone is None) == (not idle)
        if gone is not None:
            self.release({gone})

    @rule(seconds=st.sampled_from([0.001, 1.0, 50.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    def idle(self) -> set[Adapter]:
        return self.regions - self.uploading

    def release(self, gone: set[Adapter]) -> None:
        assert gone <= self.idle(), "a region was released that is read from or was never filled"
        self.regions -= gone

    @invariant()
    def holds(self) -> None:
        self.tier.check_invariants()
        assert set(self.tier.adapters) == self.regions
        busy = sum(a.num_bytes for a in self.reading | self.uploading)
        held = sum(a.num_bytes for a in self.regions | self.reading)
        assert self.tier.used_bytes == held
        assert held <= max(BUDGET, busy)


TestHostTier = HostTierMachine.TestCase
TestHostTier.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
