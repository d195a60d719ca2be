"""Which adapters have a copy in host memory, where the device has memory of its own.

It is an adapter's place between the disk and the device: what the device drops can come back
without the disk. The copies have a budget of bytes, and go in the order of the policy that the
device's memory has, too; here a use is a load, since nothing else needs the copy.
"""

from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import EvictionPolicy
from anole_worker.core.residency import AdapterCache, Residency


class HostTier:
    """The ledger of the copies.

    A load is begin(), then read() or failed(), then end(). Between begin and end the copy stays,
    whatever the budget: an adapter reaches the device through host memory or not at all. So all
    copies together are within the budget, but for those of the loads under way.
    """

    def __init__(self, budget_bytes: int, policy: EvictionPolicy) -> None:
        """policy: one of its own, not the device's: its counts are of loads."""
        self.budget_bytes = budget_bytes
        self._copies = AdapterCache(policy)

    @property
    def used_bytes(self) -> int:
        """Bytes of all copies, those that are being read among them."""
        return self._copies.used_bytes

    def __contains__(self, adapter: Adapter) -> bool:
        """Whether there is a whole copy."""
        return self._copies.residency(adapter) is Residency.RESIDENT

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """Those of which there is a whole copy."""
        return self._copies.adapters(Residency.RESIDENT)

    def begin(self, adapter: Adapter, now: float) -> tuple[Adapter, ...]:
        """The adapter is to be loaded: its copy stays until end(), and is read if there is none.

        Returns whose copies go for it. Other contents under the same name are the first of them.
        """
        self._copies.used(adapter, now)
        if adapter in self:
            self._copies.pin(adapter)
            return ()
        self._copies.start_load(adapter)
        for other in self.adapters:
            if other.adapter_id == adapter.adapter_id:
                self._copies.retire(other)
        return self._shrunk(now)

    def read(self, adapter: Adapter) -> None:
        """The copy is whole now."""
        self._copies.loaded(adapter)
        self._copies.pin(adapter)

    def failed(self, adapter: Adapter) -> None:
        """The copy could not be read."""
        self._copies.load_failed(adapter)

    def end(self, adapter: Adapter, now: float) -> tuple[Adapter, ...]:
        """The load is over, however it went. Returns whose copies go, its own perhaps."""
        self._copies.unpin(adapter, now)
        return self._shrunk(now)

    def spare(self, now: float) -> Adapter | None:
        """Let the next one's copy go though the budget does not ask for it; None if all stay."""
        usage = next(self._copies.in_order(now), None)
        if usage is None:
            return None
        self._copies.drop(usage.adapter)
        return usage.adapter

    def _shrunk(self, now: float) -> tuple[Adapter, ...]:
        gone: list[Adapter] = []
        while self.used_bytes > self.budget_bytes and (spared := self.spare(now)) is not None:
            gone.append(spared)
        return tuple(gone)

    def check_invariants(self) -> None:
        """What is idle is within the budget."""
        self._copies.check_invariants()
        is_idle = self._copies.idle_bytes(()) > 0
        assert not is_idle or self.used_bytes <= self.budget_bytes
