"""Which adapters are in the worker's memory, which are pinned, and how each has been used."""

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import EvictionPolicy, Usage

_MAX_USES_KEPT = 20_000
_FADED = 0.01
_SORTED_FOR_S = 0.0005
"""How long an order of idle adapters holds, for each of them: sorting takes a fixed small share."""


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


@dataclass(slots=True)
class _Entry:
    residency: Residency = Residency.ABSENT
    pins: int = 0

    def move_to(self, residency: Residency) -> None:
        assert residency in TRANSITIONS[self.residency], f"{self.residency} -> {residency}"
        self.residency = residency


@dataclass(slots=True)
class _Uses:
    count: float
    last_s: float


class AdapterCache:
    """The adapters that take memory, and the order in which they go.

    There are no slots: an adapter stays until somebody needs its bytes, and how many bytes there
    are is not known here. A sequence that runs with an adapter pins it. How often each was used is
    remembered after it has gone, and fades over the policy's window.
    """

    def __init__(self, policy: EvictionPolicy) -> None:
        self.used_bytes = 0
        """Bytes of all adapters that are resident or being loaded."""
        self.num_loading = 0
        self._policy = policy
        self._entries: dict[Adapter, _Entry] = {}
        self._uses: dict[Adapter, _Uses] = {}
        self._retired: set[Adapter] = set()
        self._idle: dict[Adapter, None] = {}
        self._idle_bytes = 0
        self._order: OrderedDict[Adapter, Usage] = OrderedDict()  # of those idle since it was made
        self._order_ends_s = -math.inf

    def residency(self, adapter: Adapter) -> Residency:
        """Where the adapter is now."""
        entry = self._entries.get(adapter)
        return entry.residency if entry else Residency.ABSENT

    def adapters(self, residency: Residency) -> tuple[Adapter, ...]:
        """The adapters that are resident, or loading."""
        return tuple(a for a, e in self._entries.items() if e.residency is residency)

    def is_pinned(self, adapter: Adapter) -> bool:
        """Whether a sequence runs with it."""
        return self._entries[adapter].pins > 0

    def used(self, adapter: Adapter, now: float) -> None:
        """A request for the adapter has come."""
        if len(self._uses) >= _MAX_USES_KEPT:
            self._forget_faded(now)
        uses = self._uses.setdefault(adapter, _Uses(0.0, now))
        uses.count = self._faded(uses, now) + 1
        uses.last_s = now
        self._order.pop(adapter, None)
        self._policy.used(self.usage(adapter, now))

    def usage(self, adapter: Adapter, now: float) -> Usage:
        """How the adapter has been used."""
        uses = self._uses.get(adapter)
        count, last_s = (self._faded(uses, now), uses.last_s) if uses else (0.0, -math.inf)
        return Usage(adapter=adapter, count=count, last_used_s=last_s, idle_s=now - last_s)

    def _faded(self, uses: _Uses, now: float) -> float:
        return uses.count * math.exp(-max(0.0, now - uses.last_s) / self._policy.window_s)

    def _forget_faded(self, now: float) -> None:
        absent = [adapter for adapter in self._uses if adapter not in self._entries]
        by_count = sorted(absent, key=lambda adapter: self._faded(self._uses[adapter], now))
        faded = [a for a in by_count if self._faded(self._uses[a], now) < _FADED]
        for adapter in faded or by_count[: div_ceil(len(by_count), 2)]:
            del self._uses[adapter]
            self._policy.forget(adapter)

    def retire(self, adapter: Adapter) -> None:
        """It was replaced: whoever runs with it may end, then it is the first to go."""
        if adapter in self._entries:
            self._retired.add(adapter)
            self._order_ends_s = -math.inf

    def pin(self, adapter: Adapter) -> None:
        """Keep a resident adapter until as many unpins."""
        entry = self._entries[adapter]
        assert entry.residency is Residency.RESIDENT, f"{adapter.adapter_id} is not here"
        entry.pins += 1
        if entry.pins == 1:
            self._leave_idle(adapter)

    def unpin(self, adapter: Adapter, now: float) -> None:
        """Undo one pin."""
        entry = self._entries[adapter]
        assert entry.pins > 0, f"{adapter.adapter_id} is not pinned"
        entry.pins -= 1
        if entry.pins == 0:
            self._join_idle(adapter)
        if adapter in self._uses:
            self._uses[adapter].count = self._faded(self._uses[adapter], now)
            self._uses[adapter].last_s = now

    def _join_idle(self, adapter: Adapter) -> None:
        self._idle[adapter] = None
        self._idle_bytes += adapter.num_bytes

    def _leave_idle(self, adapter: Adapter) -> None:
        del self._idle[adapter]
        self._idle_bytes -= adapter.num_bytes
        self._order.pop(adapter, None)

    def in_order(self, now: float) -> Iterator[Usage]:
        """The adapters that can go, in the order in which they do.

        With many of them the order is some moments old: it leaves those out that were used since,
        and those that have become idle since come behind it.
        """
        if now > self._order_ends_s:
            self._sort(now)
        yield from self._order.values()
        if len(self._order) < len(self._idle):
            told = set(self._order)
            self._sort(now)
            yield from (usage for usage in self._order.values() if usage.adapter not in told)

    def _sort(self, now: float) -> None:
        """The retired first, as if they had never been used; the others as the policy says."""
        retired = [adapter for adapter in self._idle if adapter in self._retired]
        others = [self.usage(a, now) for a in self._idle if a not in self._retired]
        never = {"count": 0.0, "last_used_s": -math.inf, "idle_s": math.inf}
        usages = [*(Usage(adapter=a, **never) for a in retired), *self._policy.order(others)]
        self._order = OrderedDict((usage.adapter, usage) for usage in usages)
        self._order_ends_s = now + len(usages) * _SORTED_FOR_S

    def used_bytes_since(self, since_s: float) -> int:
        """Bytes of the adapters that are pinned or loading, or were used since then."""
        total = self.used_bytes
        for adapter in self._idle:
            uses = self._uses.get(adapter)
            if uses is None or uses.last_s < since_s:
                total -= adapter.num_bytes
        return total

    def idle_bytes(self, kept: Collection[Adapter]) -> int:
        """Bytes of the adapters that can go, but for some that are kept."""
        return self._idle_bytes - sum(a.num_bytes for a in set(kept) if a in self._idle)

    def start_load(self, adapter: Adapter) -> None:
        """Count an absent adapter's bytes; its weights are on their way."""
        assert adapter not in self._entries, f"{adapter.adapter_id} is here already"
        entry = _Entry()
        entry.move_to(Residency.LOADING)
        self._entries[adapter] = entry
        self.used_bytes += adapter.num_bytes
        self.num_loading += 1

    def loaded(self, adapter: Adapter) -> None:
        """The weights have arrived."""
        self._entries[adapter].move_to(Residency.RESIDENT)
        self.num_loading -= 1
        self._join_idle(adapter)

    def load_failed(self, adapter: Adapter) -> None:
        """The weights do not arrive."""
        assert self._entries[adapter].residency is Residency.LOADING
        self.num_loading -= 1
        self._remove(adapter)
        self._policy.forget(adapter)

    def drop(self, adapter: Adapter) -> None:
        """Let an idle adapter go, because its memory is needed."""
        assert self._entries[adapter].pins == 0, f"{adapter.adapter_id} is pinned"
        self._leave_idle(adapter)
        if adapter in self._retired:
            self._policy.forget(adapter)
        else:
            self._policy.gone(adapter)
        self._remove(adapter)

    def _remove(self, adapter: Adapter) -> None:
        self._entries[adapter].move_to(Residency.ABSENT)
        del self._entries[adapter]
        self._retired.discard(adapter)
        self.used_bytes -= adapter.num_bytes

    def take_back(self, adapter: Adapter) -> None:
        """List an adapter again that was dropped but is still in memory."""
        self.start_load(adapter)
        self.loaded(adapter)

    def check_invariants(self) -> None:
        """Nobody is listed as absent; the sum is right; only what is here is pinned."""
        assert self.used_bytes == sum(adapter.num_bytes for adapter in self._entries)
        assert self.num_loading == len(self.adapters(Residency.LOADING))
        assert self._retired <= self._entries.keys()
        idle = [a for a in self.adapters(Residency.RESIDENT) if not self.is_pinned(a)]
        assert self._idle.keys() == set(idle)
        assert self._order.keys() <= self._idle.keys()
        assert self._idle_bytes == sum(adapter.num_bytes for adapter in idle)
        for entry in self._entries.values():
            assert entry.residency is not Residency.ABSENT
            assert entry.pins == 0 or (entry.pins > 0 and entry.residency is Residency.RESIDENT)
