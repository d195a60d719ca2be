"""Which adapters are brought into memory next, for whom, and what goes for them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from anole_shared.ids import RequestId
from anole_worker.core.adapter import Adapter
from anole_worker.core.memory import Memory, Wanted
from anole_worker.core.prefetch import ArrivalHistogram
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Sequence
from anole_worker.core.waiting import Waiting

_MAX_HINTS = 256
_HINT_S = 30.0
_GUESS_EVERY_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    """Bring the adapter's weights into memory, after giving back the memory of evict."""

    adapter: Adapter
    evict: tuple[Adapter, ...]
    request_id: RequestId | None
    """The request that waits for it; None where it is only expected to be needed."""


class Loading:
    """Plans loads: first for sequences that wait here, then hints, then guesses.

    A *hint* is an adapter of a request that waits elsewhere. It may take the room of what nobody
    waits for, and is then kept like the adapters of waiting sequences, for a while. A *guess* only
    takes room that is unused.
    """

    def __init__(
        self, memory: Memory, *, max_loads: int, predictor: ArrivalHistogram | None
    ) -> None:
        """max_loads: how many may be under way. predictor: None for no guesses."""
        self._memory = memory
        self._max_loads = max_loads
        self._predictor = predictor
        self._hints: dict[Adapter, float] = {}
        self._new_hints: dict[Adapter, None] = {}
        self._declined: list[Adapter] = []
        self._next_guess_s = 0.0
        self.no_room_for: Adapter | None = None
        """The adapter of the first sequence for whose adapter there is none, as last seen."""

    def hint(self, adapter: Adapter, now: float) -> None:
        """A request that waits elsewhere will need the adapter."""
        if not self._memory.fits(0, adapter):
            self._declined.append(adapter)
            return
        self._hints.pop(adapter, None)
        if len(self._hints) >= _MAX_HINTS:
            self._forget_oldest_hint()
        self._hints[adapter] = now
        self._new_hints[adapter] = None

    def arrived(self, adapter: Adapter, now: float) -> None:
        """A request for the adapter has come: no need to expect it any more."""
        self._hints.pop(adapter, None)
        self._new_hints.pop(adapter, None)
        self._memory.adapters.used(adapter, now)
        if self._predictor is not None:
            self._predictor.arrived(adapter, now)

    def _forget_oldest_hint(self) -> None:
        oldest = next(iter(self._hints))
        del self._hints[oldest]
        if oldest in self._new_hints:
            del self._new_hints[oldest]
            self.left(oldest, ())

    def left(self, adapter: Adapter | None, waiting: Collection[Adapter]) -> None:
        """One that needed the adapter waits no more; waiting: what the others need.

        If no load has begun for it, and nobody else needs it, none will.
        """
        if adapter is None or adapter in waiting or adapter in self._new_hints:
            return
        if self._is_absent(adapter):
            self._declined.append(adapter)

    def wanted(
        self, waiting: Collection[Adapter], now: float, kept: Collection[Adapter] = ()
    ) -> Wanted:
        """What requests that wait, here or elsewhere, need: it goes last."""
        while self._hints and now - next(iter(self._hints.values())) > _HINT_S:
            self._forget_oldest_hint()
        return Wanted(kept=kept, waiting=waiting, hinted=self._hints.keys())

    def give_up(
        self, num_bytes: int, waiting: Collection[Adapter], now: float
    ) -> tuple[Adapter, ...]:
        """Let idle adapters of at least so many bytes go, or all that can go, for the host's sake.

        Those that requests wait for stay: they would be loaded again at once.
        """
        wanted = self.wanted(waiting, now)
        return self._memory.give_up(num_bytes, now, kept={*wanted.waiting, *wanted.hinted})

    def plan(
        self, waiting: Waiting, headroom_bytes: int, now: float, short: Sequence | None = None
    ) -> list[LoadAdapter]:
        """What to load now. Running sequences are left headroom_bytes to grow.

        Where there is no room for one sequence's adapter, or for the blocks of the one that is
        short of them, no later one's adapter takes room away from it.
        """
        loads: list[LoadAdapter] = []
        if self._memory.adapters.num_loading >= self._max_loads:
            return loads
        for load in self._planned(waiting, headroom_bytes, now, short):
            loads.append(load)
            if self._memory.adapters.num_loading >= self._max_loads:
                break
        return loads

    def _planned(
        self, waiting: Waiting, headroom_bytes: int, now: float, short: Sequence | None
    ) -> Iterator[LoadAdapter]:
        wanted = self.wanted(waiting.adapters, now)
        self.no_room_for = None
        earlier: list[Adapter] = []
        for sequence in waiting:
            if sequence is short:
                return
            adapter = sequence.adapter
            if adapter is None:
                continue
            if self._is_absent(adapter):
                kept = replace(wanted, kept=set(earlier))
                evict = self._memory.claim(adapter, now, kept, spare_bytes=headroom_bytes)
                if evict is None:
                    self.no_room_for = adapter
                    return
                yield LoadAdapter(adapter=adapter, evict=evict, request_id=sequence.request_id)
            earlier.append(adapter)
        yield from self._hinted(wanted, headroom_bytes, now)
        yield from self._guesses(headroom_bytes, now)

    def _hinted(self, wanted: Wanted, headroom_bytes: int, now: float) -> Iterator[LoadAdapter]:
        """Each is tried once."""
        if not self._new_hints:
            return
        kept = Wanted(kept={*wanted.waiting, *wanted.hinted})
        while self._new_hints:
            adapter = next(iter(self._new_hints))
            del self._new_hints[adapter]
            if self._is_absent(adapter):
                evict = self._memory.claim(adapter, now, kept, spare_bytes=headroom_bytes)
                if evict is not None:
                    yield LoadAdapter(adapter=adapter, evict=evict, request_id=None)
                else:
                    self._declined.append(adapter)

    def collect_declined(self) -> tuple[Adapter, ...]:
        """The adapters that were to be loaded and will not be, since the last call."""
        declined, self._declined = tuple(self._declined), []
        return declined

    def _guesses(self, headroom_bytes: int, now: float) -> Iterator[LoadAdapter]:
        if self._predictor is None or now < self._next_guess_s:
            return
        self._next_guess_s = now + _GUESS_EVERY_S
        absent = [adapter for adapter in self._predictor.known if self._is_absent(adapter)]
        for adapter in self._predictor.due(absent, now):
            if self._memory.claim_unused(adapter, spare_bytes=headroom_bytes):
                yield LoadAdapter(adapter=adapter, evict=(), request_id=None)

    def _is_absent(self, adapter: Adapter) -> bool:
        return self._memory.adapters.residency(adapter) is Residency.ABSENT
