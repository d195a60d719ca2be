"""Which adapters are in the worker's memory, which are pinned, and which go when room is needed."""

from dataclasses import dataclass
from enum import Enum, auto

from anole_shared.ids import AdapterId


class Residency(Enum):
    """Where an adapter's weights are, seen from this worker."""

    ABSENT = auto()
    LOADING = auto()
    RESIDENT = auto()


TRANSITIONS: dict[Residency, frozenset[Residency]] = {
    Residency.ABSENT: frozenset({Residency.LOADING}),
    Residency.LOADING: frozenset({Residency.RESIDENT, Residency.ABSENT}),
    Residency.RESIDENT: frozenset({Residency.ABSENT}),
}
"""Every legal change; loading ends in ABSENT where it failed."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    size_bytes: int
    residency: Residency
    pins: int = 0
    last_used: float = 0.0

    def move_to(self, residency: Residency) -> None:
        assert residency in TRANSITIONS[self.residency], f"{self.residency} -> {residency}"
        self.residency = residency


class AdapterCache:
    """The ledger of adapter memory: a budget in bytes, no fixed number of slots.

    An adapter stays until its bytes are needed. Pinned adapters (a sequence runs with them or waits
    for them) never go; of the others the least recently used goes first.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._entries: dict[AdapterId, _Entry] = {}

    @property
    def used_bytes(self) -> int:
        """Bytes of all adapters that are resident or being loaded."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def residency(self, adapter_id: AdapterId) -> Residency:
        """Where the adapter is now."""
        entry = self._entries.get(adapter_id)
        return entry.residency if entry else Residency.ABSENT

    def resident(self) -> tuple[AdapterId, ...]:
        """Adapters whose weights are in memory, by id."""
        found = (a for a, e in self._entries.items() if e.residency is Residency.RESIDENT)
        return tuple(sorted(found))

    def pin(self, adapter_id: AdapterId, now: float) -> None:
        """Keep an adapter that is resident or loading until as many unpins."""
        entry = self._entries[adapter_id]
        entry.pins += 1
        entry.last_used = now

    def unpin(self, adapter_id: AdapterId, now: float) -> None:
        """Undo one pin."""
        entry = self._entries[adapter_id]
        assert entry.pins > 0, f"{adapter_id} is not pinned"
        entry.pins -= 1
        entry.last_used = now

    def start_load(
        self, adapter_id: AdapterId, size_bytes: int, now: float
    ) -> tuple[AdapterId, ...] | None:
        """Claim room for an absent adapter.

        Returns the adapters whose memory must be given back first (they are forgotten here at
        once), or None, with nothing changed, where pinned adapters leave too little room.
        """
        assert self.residency(adapter_id) is Residency.ABSENT, f"{adapter_id} is here already"
        victims = self._victims(self.used_bytes + size_bytes - self.budget_bytes)
        if victims is None:
            return None
        for victim in victims:
            self._entries[victim].move_to(Residency.ABSENT)
            del self._entries[victim]
        entry = _Entry(size_bytes=size_bytes, residency=Residency.ABSENT, last_used=now)
        entry.move_to(Residency.LOADING)
        self._entries[adapter_id] = entry
        return victims

    def loaded(self, adapter_id: AdapterId) -> None:
        """The weights have arrived."""
        self._entries[adapter_id].move_to(Residency.RESIDENT)

    def load_failed(self, adapter_id: AdapterId) -> None:
        """The weights will not arrive; whoever pinned the adapter has let go of it."""
        entry = self._entries[adapter_id]
        assert entry.pins == 0, f"{adapter_id} is still pinned"
        entry.move_to(Residency.ABSENT)
        del self._entries[adapter_id]

    def take_back(self, adapter_id: AdapterId, size_bytes: int, now: float) -> bool:
        """List a victim again whose memory was not given back after all.

        False, with nothing changed, where its room has been claimed since, or it is to be loaded.
        """
        if adapter_id in self._entries or self.used_bytes + size_bytes > self.budget_bytes:
            return False
        self._entries[adapter_id] = _Entry(
            size_bytes=size_bytes, residency=Residency.RESIDENT, last_used=now
        )
        return True

    def _victims(self, needed_bytes: int) -> tuple[AdapterId, ...] | None:
        """The least recently used idle adapters that free needed_bytes; None if all are too few."""
        idle = sorted(
            (
                (entry.last_used, adapter_id, entry.size_bytes)
                for adapter_id, entry in self._entries.items()
                if entry.pins == 0 and entry.residency is Residency.RESIDENT
            ),
        )
        victims: list[AdapterId] = []
        for _, adapter_id, size_bytes in idle:
            if needed_bytes <= 0:
                break
            victims.append(adapter_id)
            needed_bytes -= size_bytes
        return tuple(victims) if needed_bytes <= 0 else None

    def check_invariants(self) -> None:
        """Within the budget; nobody is listed as absent; pins never negative."""
        assert self.used_bytes <= self.budget_bytes
        for entry in self._entries.values():
            assert entry.residency is not Residency.ABSENT
            assert entry.pins >= 0
