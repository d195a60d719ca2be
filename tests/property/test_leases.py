"""Whatever holders ask, release and lose, the lease table keeps its promises."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from anole_memd.core.lease import Lease, LeaseTable
from anole_memd.errors import BadRegionSize, LeaseRefused, OverBudget, TooManyLeases
from anole_shared.ids import LeaseId
from anole_shared.units import HUGE_PAGE_BYTES, region_bytes

BUDGET_BYTES = 8 * HUGE_PAGE_BYTES + 1234
MAX_LEASES = 3
OWNERS = st.integers(min_value=1, max_value=4)


class Leases(RuleBasedStateMachine):
    """Drives the table next to the plainest model of it: a dictionary of what stands."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.table = LeaseTable(budget_bytes=BUDGET_BYTES, max_leases_per_owner=MAX_LEASES)
        self.standing: dict[LeaseId, Lease] = {}
        self.ever: set[LeaseId] = set()

    def held_by(self, owner: int) -> list[Lease]:
        return [lease for lease in self.standing.values() if lease.owner == owner]

    @property
    def free_bytes(self) -> int:
        return BUDGET_BYTES - sum(lease.num_bytes for lease in self.standing.values())

    @rule(
        target=leases,
        owner=OWNERS,
        num_bytes=st.integers(min_value=-1, max_value=10 * HUGE_PAGE_BYTES),
    )
    def grant(self, owner: int, num_bytes: int) -> Lease:
        try:
            lease = self.table.grant(owner, num_bytes)
        except LeaseRefused as refusal:
            self.check_refusal(refusal, owner, num_bytes)
            return Lease(lease_id=LeaseId("never-granted"), owner=owner, num_bytes=0)
        assert num_bytes <= lease.num_bytes < num_bytes + HUGE_PAGE_BYTES
        assert lease.owner == owner
        assert lease.lease_id not in self.ever
        self.ever.add(lease.lease_id)
        self.standing[lease.lease_id] = lease
        return lease

    def check_refusal(self, refusal: LeaseRefused, owner: int, num_bytes: int) -> None:
        match refusal:
            case BadRegionSize():
                assert num_bytes <= 0 or region_bytes(num_bytes) > BUDGET_BYTES
            case OverBudget():
                assert self.free_bytes < region_bytes(num_bytes) <= BUDGET_BYTES
            case TooManyLeases():
                assert len(self.held_by(owner)) == MAX_LEASES
            case _:
                raise refusal

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        expected = self.standing.pop(lease.lease_id, None)
        assert self.table.release(lease.owner, lease.lease_id) == expected
        assert self.table.release(lease.owner, lease.lease_id) is None

    @rule(lease=leases, owner=OWNERS)
    def release_of_a_strangers_lease_does_nothing(self, lease: Lease, owner: int) -> None:
        if owner != lease.owner:
            assert self.table.release(owner, lease.lease_id) is None

    @rule(owner=OWNERS)
    def holder_gone(self, owner: int) -> None:
        held = self.held_by(owner)
        assert self.table.holder_gone(owner) == held
        for lease in held:
            del self.standing[lease.lease_id]

    @invariant()
    def the_table_agrees_with_the_model(self) -> None:
        self.table.check_invariants()
        assert self.table.num_leases == len(self.standing)
        assert self.table.leased_bytes == BUDGET_BYTES - self.free_bytes <= BUDGET_BYTES


TestLeases = Leases.TestCase
