"""The link of a simulated worker: adapters that are on their way, one after the other."""

from collections.abc import Callable, Collection

from anole_sim.pool import Pool
from anole_sim.profile import Link
from anole_worker.core.adapter import Adapter
from anole_worker.core.residency import Residency


class Loads:
    """Puts loads on the link, and makes room for what they bring."""

    def __init__(self, link: Link, pool: Pool, wanted: Callable[[], Collection[Adapter]]) -> None:
        """wanted: the adapters that somebody waits for, which others do not push out."""
        self.num_bytes = 0
        """Brought so far."""
        self.begun: list[tuple[float, Adapter]] = []
        """When each will be there; not told yet."""
        self.moved: list[tuple[Adapter, Residency]] = []
        """What has come or gone; not told yet."""
        self._link = link
        self._pool = pool
        self._wanted = wanted
        self._free_s = 0.0
        self._ends_s: dict[Adapter, float] = {}

    @property
    def num(self) -> int:
        """Loads under way."""
        return len(self._ends_s)

    def residency(self, adapter: Adapter) -> Residency:
        """Where the adapter is."""
        return self._pool.cache.residency(adapter)

    def begin(self, adapter: Adapter, now: float, *, takes_wanted: bool = False) -> bool:
        """Put a load on the link, if there is room for it."""
        if not self.make_room(adapter.num_bytes, now, takes_wanted=takes_wanted):
            return False
        self._pool.cache.start_load(adapter)
        self._free_s = max(now, self._free_s) + self._link.seconds(adapter.num_bytes)
        self.num_bytes += adapter.num_bytes
        self._ends_s[adapter] = self._free_s
        self.begun.append((self._free_s, adapter))
        return True

    def wait(self, adapter: Adapter, now: float) -> float:
        """Have the adapter come while nothing else happens; when it is there."""
        if adapter not in self._ends_s:
            done = self.begin(adapter, now, takes_wanted=True)
            assert done, "an admission has made the room"
        ready_s = self._ends_s[adapter]
        self._arrive(adapter)
        return ready_s

    def end(self, adapter: Adapter, now: float) -> bool:
        """A load has ended, unless a step that waited for it has said so already."""
        if self._ends_s.get(adapter, now + 1) > now:
            return False
        self._arrive(adapter)
        return True

    def _arrive(self, adapter: Adapter) -> None:
        del self._ends_s[adapter]
        self._pool.cache.loaded(adapter)
        self.moved.append((adapter, Residency.RESIDENT))

    def make_room(
        self, num_bytes: int, now: float, *, takes_wanted: bool, kept: Adapter | None = None
    ) -> bool:
        """Whether so many bytes are free, now that what can go for them has gone."""
        gone = self._pool.make_room(
            num_bytes, now, self._wanted, may_take_wanted=takes_wanted, kept=kept
        )
        if gone is None:
            return False
        self.moved += [(adapter, Residency.ABSENT) for adapter in gone]
        return True

    def drop(self, adapter: Adapter) -> None:
        """Let an idle adapter go."""
        self._pool.cache.drop(adapter)
        self.moved.append((adapter, Residency.ABSENT))
