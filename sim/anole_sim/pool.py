"""A simulated worker's memory: keys and values, and adapters, in one pool of bytes."""

from collections.abc import Callable, Collection

from anole_worker.core.adapter import Adapter
from anole_worker.core.residency import AdapterCache, Residency


class Pool:
    """What is used of the worker's bytes; adapters that nobody needs are what can go."""

    def __init__(self, *, num_bytes: int, kv_bytes: int, cache: AdapterCache) -> None:
        self.num_bytes = num_bytes
        self.kv_bytes = kv_bytes
        self.cache = cache
        self.kv_tokens = 0
        """Tokens whose keys and values are held or promised."""

    @property
    def free_bytes(self) -> int:
        """What nobody uses; less than nothing where a step has not found its room yet."""
        return self.num_bytes - self.kv_tokens * self.kv_bytes - self.cache.used_bytes

    def needed_bytes(self, adapter: Adapter | None) -> int:
        """Bytes of the adapters that cannot go, and of one more."""
        cache = self.cache
        needed = cache.used_bytes - cache.idle_bytes(())
        if adapter is None:
            return needed
        residency = cache.residency(adapter)
        is_counted = residency is Residency.LOADING or (
            residency is Residency.RESIDENT and cache.is_pinned(adapter)
        )
        return needed if is_counted else needed + adapter.num_bytes

    def make_room(
        self,
        num_bytes: int,
        now: float,
        wanted: Callable[[], Collection[Adapter]],
        *,
        may_take_wanted: bool,
        kept: Adapter | None = None,
    ) -> list[Adapter] | None:
        """Let idle adapters go until so much is free, those that somebody waits for last.

        Returns what has gone; None where there is not so much, and then nothing has.
        """
        short = num_bytes - self.free_bytes
        if short <= 0:
            return []
        own = () if kept is None else (kept,)
        if short > self.cache.idle_bytes(own):
            return None
        last = wanted()
        in_order = [u.adapter for u in self.cache.in_order(now) if u.adapter != kept]
        victims = [adapter for adapter in in_order if adapter not in last]
        if may_take_wanted:
            victims += [adapter for adapter in in_order if adapter in last]
        gone: list[Adapter] = []
        for adapter in victims:
            if short <= 0:
                break
            short -= adapter.num_bytes
            gone.append(adapter)
        if short > 0:
            return None
        for adapter in gone:
            self.cache.drop(adapter)
        return gone

    def check(self) -> None:
        """Assert that nothing is used twice."""
        assert self.kv_tokens >= 0
        self.cache.check_invariants()
