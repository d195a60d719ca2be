"""One budget of bytes that KV blocks and adapters share, and who gives way when it is used up."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.prefix import family, root
from anole_worker.core.residency import AdapterCache, Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The adapters that waiting requests need: they go last, or not at all."""

    kept: Collection[Adapter] = ()
    """Not for this, whatever happens."""
    waiting: Collection[Adapter] = ()
    """Only when nothing else is left, the last in line first."""
    hinted: Collection[Adapter] = ()
    """Only before those."""

    def goes_last(self, adapter: Adapter) -> bool:
        """Whether it is only to go when nothing else is left."""
        return adapter in self.waiting or adapter in self.hinted


NOBODY = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What must go for some bytes."""

    num_cached: int
    adapters: tuple[Adapter, ...]


class Memory:
    """The shared ledger of one device's memory.

    There are no slots and no shares: whatever is idle holds adapters and known prefixes. When a
    sequence or an adapter needs bytes, they come from, in this order: what nobody uses; cached
    blocks and adapters that no waiting request needs, whichever has been idle for longer (among
    adapters the policy decides); adapters that waiting requests need, the last in line first, so
    that none is loaded again for the next in line. What sequences run with never goes. Source of
    the order but for its last part: Chameleon (MICRO'25), section 4.2.
    """

    def __init__(
        self, budget_bytes: int, block_bytes: int, blocks: BlockPool, adapters: AdapterCache
    ) -> None:
        self.budget_bytes = budget_bytes
        self.block_bytes = block_bytes
        self.blocks = blocks
        self.adapters = adapters
        self._evicted: list[Adapter] = []
        self._stripped: list[int] = []

    @property
    def used_bytes(self) -> int:
        """Bytes of all blocks that take memory, and of all adapters."""
        return self.blocks.num_with_memory * self.block_bytes + self.adapters.used_bytes

    @property
    def unused_bytes(self) -> int:
        """Bytes that take no memory yet."""
        return self.budget_bytes - self.used_bytes

    def fits(self, num_blocks: int, adapter: Adapter | None) -> bool:
        """Whether there could be so many blocks and the adapter if nothing else were there."""
        needed = num_blocks * self.block_bytes + (adapter.num_bytes if adapter else 0)
        return num_blocks <= self.blocks.num_blocks and needed <= self.budget_bytes

    def can_take(self, num_blocks: int, kept: Collection[Adapter] = ()) -> bool:
        """Whether so many blocks can be had now, if all that can go goes."""
        blocks = self.blocks
        reusable = blocks.num_free + blocks.num_cached
        if reusable >= num_blocks:
            return True
        spare_bytes = self.unused_bytes + self.adapters.idle_bytes(kept)
        new = min(spare_bytes // self.block_bytes, blocks.num_bare)
        return reusable + new >= num_blocks

    def make_room(self, num_blocks: int, now: float, wanted: Wanted = NOBODY) -> bool:
        """See to it that so many blocks can be taken.

        False, with nothing changed, where too little can go.
        """
        bare_bytes = self.blocks.num_bare * self.block_bytes
        unused_bytes = min(self.unused_bytes, bare_bytes)
        missing = num_blocks - self.blocks.num_free - unused_bytes // self.block_bytes
        if missing <= 0:
            return True
        plan = self._plan(
            missing * self.block_bytes - unused_bytes % self.block_bytes,
            now,
            wanted,
            adapter_bytes=bare_bytes - unused_bytes,
        )
        if plan is None:
            return False
        self._carry_out(plan)
        self._evicted += plan.adapters
        return True

    def take_block(self) -> int:
        """A block for a sequence, for which make_room() has seen to it that there is one."""
        if self.blocks.num_free:
            return self.blocks.take_free()
        assert self.unused_bytes >= self.block_bytes, "no room was made"
        return self.blocks.take_bare()

    def claim(
        self, adapter: Adapter, now: float, wanted: Wanted = NOBODY, *, spare_bytes: int = 0
    ) -> tuple[Adapter, ...] | None:
        """Room for an adapter that is to be loaded, counted from now on.

        Returns the adapters that go for it, or None, with nothing changed, where too little can go
        without touching the last spare_bytes.
        """
        needed = adapter.num_bytes + spare_bytes - self._available_bytes
        plan = self._plan(needed, now, wanted) if needed > 0 else _Plan(num_cached=0, adapters=())
        if plan is None:
            return None
        self._carry_out(plan)
        self._strip(adapter.num_bytes)
        self.adapters.start_load(adapter)
        return plan.adapters

    def claim_unused(self, adapter: Adapter, *, spare_bytes: int = 0) -> bool:
        """Room for an adapter that might be needed: only where nothing has to go for it."""
        if adapter.num_bytes + spare_bytes > self._available_bytes:
            return False
        self._strip(adapter.num_bytes)
        self.adapters.start_load(adapter)
        return True

    @property
    def _available_bytes(self) -> int:
        """Bytes that nothing has to go for."""
        return self.unused_bytes + self.blocks.num_free * self.block_bytes

    def take_back(self, adapter: Adapter) -> bool:
        """List an adapter again whose memory was not given back after all.

        False, with nothing changed, where its room has been claimed since, or it is to be loaded.
        """
        is_here = self.adapters.residency(adapter) is not Residency.ABSENT
        if is_here or adapter.num_bytes > self.unused_bytes:
            return False
        self.adapters.take_back(adapter)
        return True

    def give_up(self, num_bytes: int, now: float, kept: Collection[Adapter]) -> tuple[Adapter, ...]:
        """Let idle adapters of at least so many bytes go, those worth least first.

        All that can go where that is less. None of them goes in vain: what turns out not to be
        needed stays.
        """
        going: list[Adapter] = []
        missing = num_bytes
        for usage in self.adapters.in_order(now):
            if missing <= 0:
                break
            if usage.adapter not in kept:
                going.append(usage.adapter)
                missing -= usage.adapter.num_bytes
        plan = self._spared(0, going, max(0, -missing))
        self._carry_out(plan)
        return plan.adapters

    def collect_evicted(self) -> tuple[Adapter, ...]:
        """The adapters that have gone for blocks since the last call: to be given back."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted

    def collect_stripped(self) -> tuple[int, ...]:
        """The blocks that have gone since the last call; give their memory back before a step."""
        stripped, self._stripped = tuple(self._stripped), []
        return stripped

    def _plan(
        self, needed_bytes: int, now: float, wanted: Wanted, *, adapter_bytes: int | None = None
    ) -> _Plan | None:
        """What goes for so many bytes; at most adapter_bytes of them can come from adapters."""
        idle_bytes = self.adapters.idle_bytes(wanted.kept)
        limit = idle_bytes if adapter_bytes is None else min(adapter_bytes, idle_bytes)
        if needed_bytes > limit + self.blocks.num_cached * self.block_bytes:
            return None
        num_cached, adapters = 0, []
        for adapter in self._in_order(now, wanted):
            if needed_bytes <= 0:
                break
            if adapter is None:
                num_cached += 1
                needed_bytes -= self.block_bytes
            elif limit > 0:
                adapters.append(adapter)
                needed_bytes -= min(adapter.num_bytes, limit)
                limit -= adapter.num_bytes
        return self._spared(num_cached, adapters, -needed_bytes)

    def _spared(self, num_cached: int, adapters: list[Adapter], surplus_bytes: int) -> _Plan:
        """The plan without what turns out not to be needed since more has to go at its end."""
        needed: list[Adapter] = []
        for adapter in reversed(adapters):
            if adapter.num_bytes <= surplus_bytes:
                surplus_bytes -= adapter.num_bytes
            else:
                needed.append(adapter)
        num_cached -= min(num_cached, surplus_bytes // self.block_bytes)
        return _Plan(num_cached=num_cached, adapters=tuple(reversed(needed)))

    def _in_order(self, now: float, wanted: Wanted) -> Iterator[Adapter | None]:
        """What can go, first to go first; None stands for the next cached block."""
        cached = iter(self.blocks.cached_since())
        since = next(cached, None)
        last: list[Adapter] = []
        for usage in self.adapters.in_order(now):
            if usage.adapter in wanted.kept:
                continue
            if wanted.goes_last(usage.adapter):
                last.append(usage.adapter)
                continue
            while since is not None and since <= usage.last_used_s:
                yield None
                since = next(cached, None)
            yield usage.adapter
        while since is not None:
            yield None
            since = next(cached, None)
        places = {adapter: place for place, adapter in enumerate(wanted.waiting)} if last else {}
        yield from sorted(last, key=lambda adapter: -places.get(adapter, len(places)))

    def _carry_out(self, plan: _Plan) -> None:
        for _ in range(plan.num_cached):
            self.blocks.forget_oldest()
        for adapter in plan.adapters:
            self.adapters.drop(adapter)
            self.blocks.demote(family(root(adapter)))

    def _strip(self, needed_bytes: int) -> None:
        """Turn as many free blocks into unused bytes as these need."""
        missing = needed_bytes - self.unused_bytes
        if missing > 0:
            self._stripped += self.blocks.strip(div_ceil(missing, self.block_bytes))

    def check_invariants(self) -> None:
        """Within the budget, and both ledgers are sound."""
        self.blocks.check_invariants()
        self.adapters.check_invariants()
        assert self.used_bytes <= self.budget_bytes
