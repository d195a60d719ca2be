"""Which adapter goes first where memory is short: policies, to be chosen by a setting."""

from collections.abc import Mapping
from collections.abc import Sequence as Listing
from dataclasses import dataclass
from typing import Protocol

from anole_worker.core.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How an adapter that may go has been used."""

    adapter: Adapter
    count: float
    """Uses within the window; older ones have faded."""
    last_used_s: float
    idle_s: float
    """Time since then."""


class EvictionPolicy(Protocol):
    """Puts adapters in the order in which they go.

    It hears of every use, of every adapter that has gone because its memory was needed, and of
    every other one whose uses do not count any more, for what it keeps of its own.
    """

    window_s: float
    """For how long a use counts."""

    def used(self, usage: Usage) -> None: ...

    def gone(self, adapter: Adapter) -> None: ...

    def forget(self, adapter: Adapter) -> None: ...

    def order(self, idle: Listing[Usage]) -> list[Usage]: ...


class Lru:
    """The least recently used goes first."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s

    def used(self, usage: Usage) -> None:
        """Nothing to remember."""

    def gone(self, adapter: Adapter) -> None:
        """Nothing to remember."""

    def forget(self, adapter: Adapter) -> None:
        """Nothing to forget."""

    def order(self, idle: Listing[Usage]) -> list[Usage]:
        """By the time of last use."""
        return sorted(idle, key=lambda usage: (usage.last_used_s, usage.adapter.adapter_id))


class WeightedScore:
    """The lowest weighted sum of frequency, recency and size goes first.

    Each term is a fraction of the largest among the adapters that are compared: uses in the
    window; time since the last use, as what is left of the window; bytes, because a large adapter
    takes longer to load again. Source: Chameleon (MICRO'25), section 4.2; what its text leaves
    open (normalisation, window) is chosen here.
    """

    def __init__(self, window_s: float, *, frequency: float, recency: float, size: float) -> None:
        self.window_s = window_s
        self._frequency, self._recency, self._size = frequency, recency, size

    def used(self, usage: Usage) -> None:
        """Nothing to remember."""

    def gone(self, adapter: Adapter) -> None:
        """Nothing to remember."""

    def forget(self, adapter: Adapter) -> None:
        """Nothing to forget."""

    def order(self, idle: Listing[Usage]) -> list[Usage]:
        """By score, then by the time of last use."""
        most_used = max((usage.count for usage in idle), default=0) or 1.0
        largest = max((usage.adapter.num_bytes for usage in idle), default=0) or 1

        def score(usage: Usage) -> tuple[float, float, str]:
            left = max(0.0, 1 - usage.idle_s / self.window_s)
            value = (
                self._frequency * usage.count / most_used
                + self._recency * left
                + self._size * usage.adapter.num_bytes / largest
            )
            return value, usage.last_used_s, usage.adapter.adapter_id

        return sorted(idle, key=score)


class Gdsf:
    """Greedy-Dual-Size-Frequency: the lowest floor + uses * cost / bytes goes first.

    The floor is what the last one to go was worth: it rises, so that what was popular once ages.
    cost is that of loading: a fixed part, in bytes that could be read in that time, and the bytes.
    Source: L. Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency
    caching policy", HP Labs 1998.
    """

    def __init__(self, window_s: float, *, fixed_cost_bytes: int) -> None:
        self.window_s = window_s
        self._fixed_cost_bytes = fixed_cost_bytes
        self._floor = 0.0
        self._values: dict[Adapter, float] = {}

    def used(self, usage: Usage) -> None:
        """Worth what its uses save, above the floor of today."""
        self._values[usage.adapter] = self._worth(usage)

    def _worth(self, usage: Usage) -> float:
        size = usage.adapter.num_bytes
        per_use = (self._fixed_cost_bytes + size) / max(size, 1)
        return self._floor + usage.count * per_use

    def gone(self, adapter: Adapter) -> None:
        """What is worth less than it now is worth nothing."""
        self._floor = max(self._floor, self._values.pop(adapter, 0.0))

    def forget(self, adapter: Adapter) -> None:
        """It says nothing about the others."""
        self._values.pop(adapter, None)

    def order(self, idle: Listing[Usage]) -> list[Usage]:
        """By value, then by the time of last use."""

        def value(usage: Usage) -> tuple[float, float, str]:
            known = self._values.get(usage.adapter)
            worth = self._worth(usage) if known is None else known
            return worth, usage.last_used_s, usage.adapter.adapter_id

        return sorted(idle, key=value)


_LOAD_LATENCY_BYTES = 8 * 1024 * 1024
"""What could be read while an adapter's files are opened and checked."""


def by_name(window_s: float) -> Mapping[str, EvictionPolicy]:
    """A new policy of each kind, under the name that the setting has for it."""
    third = 1 / 3
    return {
        "chameleon": WeightedScore(window_s, frequency=0.45, recency=0.10, size=0.45),
        "fairshare": WeightedScore(window_s, frequency=third, recency=third, size=third),
        "lru": Lru(window_s),
        "gdsf": Gdsf(window_s, fixed_cost_bytes=_LOAD_LATENCY_BYTES),
    }
