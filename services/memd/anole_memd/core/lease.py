"""LeaseTable: who holds how much, and whether there is room for more."""

from dataclasses import dataclass

from anole_memd.errors import BadRegionSize, OverBudget, TooManyLeases
from anole_shared.ids import LeaseId
from anole_shared.units import PAGE_BYTES, region_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One owner's right to one region."""

    lease_id: LeaseId
    owner: int
    """The connection it ends with."""
    num_bytes: int
    """The region's size: whole huge pages."""


class LeaseTable:
    """Every lease that stands, never more than the budget together.

    An owner is a number that the caller gives to each holder and never gives twice.
    """

    def __init__(self, *, budget_bytes: int, max_leases_per_owner: int) -> None:
        self.budget_bytes = budget_bytes
        self._max_leases_per_owner = max_leases_per_owner
        self._by_owner: dict[int, dict[LeaseId, Lease]] = {}
        self._leased_bytes = 0
        self._num_granted = 0

    @property
    def leased_bytes(self) -> int:
        return self._leased_bytes

    @property
    def num_leases(self) -> int:
        return sum(len(leases) for leases in self._by_owner.values())

    def grant(self, owner: int, num_bytes: int) -> Lease:
        """Lease a region of at least num_bytes.

        Raises:
            BadRegionSize: it is not positive, or over the whole budget.
            OverBudget: it would fit if less were leased.
            TooManyLeases: the owner must release one first.
        """
        size = region_bytes(num_bytes)
        self._check(owner, num_bytes, size)
        self._num_granted += 1
        lease_id = LeaseId(f"lease-{self._num_granted}")
        lease = Lease(lease_id=lease_id, owner=owner, num_bytes=size)
        self._by_owner.setdefault(owner, {})[lease_id] = lease
        self._leased_bytes += size
        return lease

    def _check(self, owner: int, num_bytes: int, size: int) -> None:
        if num_bytes <= 0:
            raise BadRegionSize(f"a region of {num_bytes} bytes was asked for: ask for at least 1")
        if size > self.budget_bytes:
            raise BadRegionSize(
                f"a region of {num_bytes} bytes is more than memd's whole budget of "
                f"{self.budget_bytes} bytes: raise ANOLE_MEMD_BUDGET_BYTES"
            )
        free_bytes = self.budget_bytes - self._leased_bytes
        if size > free_bytes:
            raise OverBudget(
                f"no room for a region of {size} bytes: {free_bytes} of memd's "
                f"{self.budget_bytes} bytes are free; release regions, or raise "
                "ANOLE_MEMD_BUDGET_BYTES"
            )
        if len(self._by_owner.get(owner, ())) >= self._max_leases_per_owner:
            raise TooManyLeases(
                f"this connection holds {self._max_leases_per_owner} leases, the most that one "
                "may: release some, or raise ANOLE_MEMD_MAX_LEASES_PER_CONNECTION"
            )

    def release(self, owner: int, lease_id: LeaseId) -> Lease | None:
        """End one lease; None where this owner holds no such lease (any more)."""
        leases = self._by_owner.get(owner, {})
        lease = leases.pop(lease_id, None)
        if lease is None:
            return None
        if not leases:
            del self._by_owner[owner]
        self._leased_bytes -= lease.num_bytes
        return lease

    def holder_gone(self, owner: int) -> list[Lease]:
        """End every lease of an owner, oldest first."""
        ended = list(self._by_owner.pop(owner, {}).values())
        self._leased_bytes -= sum(lease.num_bytes for lease in ended)
        return ended

    def check_invariants(self) -> None:
        """Assert what must hold between any two calls."""
        leases = [lease for held in self._by_owner.values() for lease in held.values()]
        assert self._leased_bytes == sum(lease.num_bytes for lease in leases)
        assert 0 <= self._leased_bytes <= self.budget_bytes
        assert len({lease.lease_id for lease in leases}) == len(leases)
        for owner, held in self._by_owner.items():
            assert 0 < len(held) <= self._max_leases_per_owner
            assert all(lease.owner == owner for lease in held.values())
        for lease in leases:
            assert lease.num_bytes > 0
            assert lease.num_bytes % PAGE_BYTES == 0
