"""Whatever is plugged, leased, lost and given back, the ledger keeps its promises, on disk too."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from anole_memd.core.lease import Holder, LeaseState
from anole_memd.core.ledger import Ledger
from anole_memd.core.records import LeaseMoved, LeaseOpened, Record, RegionAdded, RegionMoved
from anole_memd.core.region import TRANSITIONS, RegionState, Trouble
from anole_memd.errors import BadRecord, BadRegionSize, LeaseRefused, OverBudget, TooManyLeases
from anole_shared.ids import LeaseId, RegionId
from anole_shared.units import HUGE_PAGE_BYTES

TOTAL_BYTES = 8 * HUGE_PAGE_BYTES
MAX_LEASES = 3
HOLDERS = st.sampled_from([Holder(pid=pid, started=7) for pid in range(1, 5)])
SIZES = st.integers(min_value=-1, max_value=10).map(lambda n: n * HUGE_PAGE_BYTES // 2)


class Regions(RuleBasedStateMachine):
    """Drives the ledger by records beside the plainest model of it."""

    regions = Bundle("regions")

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(total_bytes=TOTAL_BYTES, max_leases_per_holder=MAX_LEASES)
        self.model: dict[RegionId, tuple[RegionState, int]] = {}
        self.leases: dict[LeaseId, RegionId] = {}
        self.ever: set[str] = set()
        self.written: list[Record] = []

    def write(self, *records: Record) -> None:
        self.ledger.apply(records)
        self.written += records

    def check_room(self, holder: Holder, num_bytes: int) -> bool:
        plugged = sum(size for _, size in self.model.values())
        held = len(self.ledger.leases_of(holder))
        try:
            self.ledger.check_size(num_bytes)
            self.ledger.check_leases(holder)
            self.ledger.check_room_to_plug(num_bytes)
        except BadRegionSize:
            assert num_bytes <= 0 or num_bytes > TOTAL_BYTES
        except TooManyLeases:
            assert held == MAX_LEASES
        except OverBudget:
            assert plugged + num_bytes > TOTAL_BYTES
        except LeaseRefused as other:
            raise AssertionError from other
        else:
            assert 0 < num_bytes <= TOTAL_BYTES - plugged
            assert held < MAX_LEASES
            return True
        return False

    @rule(target=regions, holder=HOLDERS, num_bytes=SIZES, is_leased=st.booleans())
    def plug(self, holder: Holder, num_bytes: int, is_leased: bool) -> RegionId:
        if not self.check_room(holder, num_bytes):
            return RegionId("never-plugged")
        region_id = self.ledger.next_region_id()
        assert region_id not in self.ever
        self.ever.add(region_id)
        free = RegionMoved(region_id=region_id, state=RegionState.FREE, token="t")
        self.write(RegionAdded(region_id=region_id, num_bytes=num_bytes, name="r"), free)
        self.model[region_id] = (RegionState.FREE, num_bytes)
        if is_leased:
            self.lease(holder, region_id)
        return region_id

    def lease(self, holder: Holder, region_id: RegionId) -> None:
        lease_id = self.ledger.next_lease_id()
        assert lease_id not in self.ever
        self.ever.add(lease_id)
        self.write(LeaseOpened(lease_id=lease_id, region_id=region_id, holder=holder, label="w"))
        self.model[region_id] = (RegionState.LEASED, self.model[region_id][1])
        self.leases[lease_id] = region_id

    @rule(region_id=regions, holder=HOLDERS)
    def lease_what_is_free(self, region_id: RegionId, holder: Holder) -> None:
        found = self.ledger.free_region(1)
        if found is None or len(self.ledger.leases_of(holder)) == MAX_LEASES:
            return
        assert self.model[found.region_id][0] is RegionState.FREE
        self.lease(holder, found.region_id)

    @rule(region_id=regions, state=st.sampled_from(RegionState), trouble=st.sampled_from(Trouble))
    def move(self, region_id: RegionId, state: RegionState, trouble: Trouble) -> None:
        """Any move at all: the ledger takes those of the table, but for what leases do."""
        stuck = trouble if state is RegionState.STUCK else None
        before, size = self.model.get(region_id, (RegionState.ABSENT, 0))
        by_lease = RegionState.LEASED in {before, state}
        is_legal = region_id in self.model and state in TRANSITIONS[before] and not by_lease
        try:
            self.write(RegionMoved(region_id=region_id, state=state, trouble=stuck))
        except BadRecord:
            assert not is_legal
            return
        assert is_legal
        self.model[region_id] = (state, size)
        if state is RegionState.ABSENT:
            del self.model[region_id]

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if not self.leases:
            return
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        lease = self.ledger.lease(lease_id)
        assert lease is not None
        self.write(*self.ledger.ending(lease))
        region_id = self.leases.pop(lease_id)
        self.model[region_id] = (RegionState.VACATED, self.model[region_id][1])
        assert self.ledger.lease(lease_id) is None

    @rule(data=st.data(), expires_s=st.none() | st.floats(0, 100))
    def detach_or_renew(self, data: st.DataObject, expires_s: float | None) -> None:
        if self.leases:
            lease_id = data.draw(st.sampled_from(sorted(self.leases)))
            state = data.draw(st.sampled_from([LeaseState.HELD, LeaseState.DETACHED]))
            self.write(LeaseMoved(lease_id=lease_id, state=state, expires_s=expires_s))

    @rule()
    def restart(self) -> None:
        """What was written makes the same ledger again; so does its snapshot, in fewer records."""
        again = self.ledger
        for records in (self.written, self.ledger.snapshot()):
            again = Ledger(total_bytes=TOTAL_BYTES, max_leases_per_holder=MAX_LEASES)
            again.apply(records)
            again.check_invariants()
            assert again.snapshot() == self.ledger.snapshot()
            assert again.regions == self.ledger.regions
            assert again.leases == self.ledger.leases
        self.ledger, self.written = again, list(again.snapshot())

    @invariant()
    def the_ledger_agrees_with_the_model(self) -> None:
        self.ledger.check_invariants()
        assert {r.region_id: (r.state, r.num_bytes) for r in self.ledger.regions} == self.model
        sizes = self.ledger.sizes
        assert sizes.plugged == sum(size for _, size in self.model.values()) <= TOTAL_BYTES
        leased = [size for state, size in self.model.values() if state is RegionState.LEASED]
        assert sizes.leased == sum(leased) <= sizes.plugged


TestLedger = Regions.TestCase
