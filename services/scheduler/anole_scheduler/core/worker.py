"""What is believed of one worker: its room, what it was given, which adapters it holds."""

from collections.abc import Iterable, Mapping

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.memory import Budget, Capacity, Charge
from anole_scheduler.core.request import Progress, Request
from anole_scheduler.core.residency import Presence, Residency
from anole_shared.ids import AdapterId, RequestId, WorkerId
from anole_shared.units import div_ceil

# Short ways to members, see State.
_ABSENT, _HOST, _LOADING = Residency.ABSENT, Residency.HOST, Residency.LOADING


class Worker:
    """A mirror of the worker's own admission.

    The worker starts sequences in the order in which it got them, as far as its memory goes. So of
    the requests that it was given some have *started* (they hold a seat, the blocks that they are
    predicted to need, and together with others their adapter) and the later ones wait *ahead* of
    need; each end lets the first of these start. The worker may for a moment start a later one
    first, while the adapter of an earlier one loads; the sums are the same soon after. Where a
    prediction was too low the worker takes more than was counted, and preempts if it must.

    *Foreign* is what the worker runs and this scheduler did not give it: from before a restart, or
    of an attempt that was given up. It holds seats. *Unexplained* are the blocks that the worker
    reports beyond those counted: of foreign requests, and of answers longer than predicted.
    """

    def __init__(
        self,
        worker_id: WorkerId,
        *,
        model: str,
        capacity: Capacity,
        admit_ahead: int,
        now: float,
        output_share: float = 1.0,
    ) -> None:
        self.worker_id = worker_id
        self.model = model
        self.capacity = capacity
        self.bytes_per_token = capacity.bytes_per_token
        self.seen_s = now
        self.is_draining = False
        """Whether it finishes what it has and takes nothing more."""
        self.is_open = True
        """Whether there may be room for some request; a quick look before has_room()."""
        self._takes_ahead = True
        """Whether a request that cannot start yet may be given to it."""
        self.started: dict[RequestId, Charge] = {}
        self.ahead: dict[RequestId, Charge] = {}
        """What waits at the worker, in order."""
        self.foreign: dict[RequestId, float] = {}
        """Since when each foreign request is known."""
        self.unexplained_blocks = 0
        self.reserved_for: RequestId | None = None
        """The only waiting request that may be given to it, where one has waited for too long."""
        self.budget = Budget(capacity.block_bytes)
        """What the started ones take."""
        self._ahead_blocks = 0
        self._admit_ahead = admit_ahead
        self._output_share = output_share
        self._folder: Mapping[AdapterId, Adapter] | None = None
        self._longest: dict[AdapterId, int] = {}
        self._presences: dict[AdapterId, Presence] = {}
        self._num_loading = 0
        self._look_open()

    @property
    def folder(self) -> Mapping[AdapterId, Adapter] | None:
        """The adapters that it has on disk; None until it has said so: it may have any."""
        return self._folder

    @folder.setter
    def folder(self, folder: Mapping[AdapterId, Adapter] | None) -> None:
        self._folder = folder
        self._longest.clear()

    @property
    def num_admitted(self) -> int:
        """Requests that it was given and that have not ended."""
        return len(self.started) + len(self.ahead)

    @property
    def used_bytes(self) -> int:
        """Bytes that are counted or reported as held."""
        return self.budget.used_bytes + self.unexplained_blocks * self.capacity.block_bytes

    @property
    def load(self) -> float:
        """Memory that is promised, as a share of all; above 1 where some wait."""
        promised = self.used_bytes + self._ahead_blocks * self.capacity.block_bytes
        return promised / self.capacity.memory_bytes

    @property
    def num_loading(self) -> int:
        """Adapters that are expected and have not come."""
        return self._num_loading

    def admitted(self) -> list[RequestId]:
        """The requests that it was given, those that started first."""
        return [*self.started, *self.ahead]

    def has(self, request_id: RequestId) -> bool:
        """Whether it was given the request."""
        return request_id in self.started or request_id in self.ahead

    def can_ever_run(self, request: Request, recorded: Adapter | None) -> bool:
        """Whether it could run the request if it were idle; recorded: its adapter, if known."""
        return request.max_len <= self.longest(request.adapter_id, recorded)

    def longest(self, adapter_id: AdapterId | None, recorded: Adapter | None) -> int:
        """Tokens of the longest request with that adapter that it can ever run.

        0 where it does not have the adapter, or no memory for it, as far as is known.
        """
        if adapter_id is None:
            return self.capacity.longest()
        known = self._longest.get(adapter_id)
        if known is not None:
            return known
        if self._folder is None:
            return self.capacity.longest(0 if recorded is None else recorded.size_bytes)
        adapter = self._folder.get(adapter_id)
        is_served = adapter is not None and adapter.refused is None
        longest = self.capacity.longest(adapter.size_bytes) if adapter and is_served else 0
        if adapter is not None:
            self._longest[adapter_id] = longest
        return longest

    def charge_of(self, progress: Progress) -> Charge:
        """What the request is expected to take here."""
        adapter_id = progress.request.adapter_id
        output = max(1, int(progress.predicted_tokens * self._output_share))
        return Charge(
            div_ceil(progress.request.num_prompt_tokens + output, self.capacity.block_size),
            adapter_id,
            self._adapter_bytes(adapter_id, progress.adapter),
        )

    def _adapter_bytes(self, adapter_id: AdapterId | None, recorded: Adapter | None) -> int:
        """As it lies in this worker's folder, or as it was recorded; 0 where nobody knows."""
        if adapter_id is None:
            return 0
        adapter = recorded if self._folder is None else self._folder.get(adapter_id)
        return 0 if adapter is None else adapter.size_bytes

    def can_start(self, progress: Progress) -> bool:
        """Whether it would start the request at once."""
        return not self.ahead and self._fits_now(self.charge_of(progress))

    def lacks_only_adapter_room(self, progress: Progress) -> bool:
        """Whether the request would start at once if its adapter took no memory."""
        if progress.adapter is None or self.ahead or not self._has_seat():
            return False
        charge = self.charge_of(progress)
        missing = self.used_bytes + self.budget.needed(charge) - self.capacity.memory_bytes
        is_alone = not self.budget.is_used(progress.adapter.adapter_id)
        return is_alone and 0 < missing <= charge.adapter_bytes

    def missing_bytes(self, progress: Progress) -> int:
        """What is lacking for the request to start; at most 0 if nothing is."""
        needed = self.used_bytes + self.budget.needed(self.charge_of(progress))
        return needed - self.capacity.memory_bytes

    def fits_without(self, progress: Progress, other: RequestId) -> bool:
        """Whether the request would have the memory to start if the other were not there."""
        charge = self.started.get(other)
        if charge is None or self.ahead:
            return False
        return self.missing_bytes(progress) <= self.budget.freed(charge)

    def has_room(self, progress: Progress) -> bool:
        """Whether the request may be given to it now."""
        if self.reserved_for is not None and self.reserved_for != progress.request.request_id:
            return False
        return self._takes_ahead or self.can_start(progress)

    def _has_seat(self) -> bool:
        return len(self.started) + len(self.foreign) < self.capacity.max_num_seqs

    def _fits_now(self, charge: Charge) -> bool:
        needed = self.used_bytes + self.budget.needed(charge)
        return needed <= self.capacity.memory_bytes and self._has_seat()

    def admit(self, progress: Progress) -> None:
        """Count the request as given to the worker."""
        request_id = progress.request.request_id
        assert not self.has(request_id), f"{request_id} was admitted twice"
        charge = self.charge_of(progress)
        if not self.ahead and self._fits_now(charge):
            self._start(request_id, charge)
        else:
            self.ahead[request_id] = charge
            self._ahead_blocks += charge.num_blocks
        self._look_open()

    def release(self, request_id: RequestId, num_tokens: int = 0) -> None:
        """Take back what the request held; num_tokens: how long it was in the end, if known."""
        charge = self.started.pop(request_id, None)
        if charge is not None:
            self.budget.give_back(charge)
            if self.unexplained_blocks > 0:
                excess = div_ceil(num_tokens, self.capacity.block_size) - charge.num_blocks
                self.unexplained_blocks -= min(max(excess, 0), self.unexplained_blocks)
        else:
            self._ahead_blocks -= self.ahead.pop(request_id).num_blocks
        self._start_next()

    def _start_next(self) -> None:
        """After every change: start what can start."""
        if not self.started and not self.foreign:
            self.unexplained_blocks = 0
        while self.ahead:
            request_id, charge = next(iter(self.ahead.items()))
            if not self._fits_now(charge):
                break
            del self.ahead[request_id]
            self._ahead_blocks -= charge.num_blocks
            self._start(request_id, charge)
        self._look_open()

    def _start(self, request_id: RequestId, charge: Charge) -> None:
        self.started[request_id] = charge
        self.budget.take(charge)

    def _look_open(self) -> None:
        """After every change: what has_room() asks of every worker for every request."""
        num_ahead = len(self.ahead)
        num_seats = self.capacity.max_num_seqs - len(self.started) - len(self.foreign)
        left = self._admit_ahead - num_ahead
        self._takes_ahead = left > 0 and num_seats + left > 0
        self.is_open = self._takes_ahead or (num_ahead == 0 and num_seats > 0)

    def disown(self, request: Request, now: float) -> None:
        """The worker may still run what it was given, but it is no longer ours."""
        request_id = request.request_id
        charge = self.started.get(request_id) or self.ahead[request_id]
        self.foreign[request_id] = now
        held_bytes = self.budget.freed(charge) if request_id in self.started else 0
        held_blocks = div_ceil(held_bytes, self.capacity.block_bytes)
        self.unexplained_blocks += max(held_blocks, charge.num_blocks)
        self.release(request_id)

    def forget_foreign(self, request_id: RequestId) -> None:
        """The worker has ended a foreign request; its blocks are known at the next report."""
        if self.foreign.pop(request_id, None) is None:
            return
        if not self.foreign:
            self.unexplained_blocks = 0
        self._start_next()

    def report_foreign(self, found: Iterable[RequestId], num_free_blocks: int, now: float) -> None:
        """Replace what is known of foreign requests by what the worker reports."""
        self.foreign = {request_id: self.foreign.get(request_id, now) for request_id in found}
        used = self.capacity.num_blocks - num_free_blocks
        self.unexplained_blocks = max(0, used - self.budget.num_blocks)
        self._start_next()

    def residency(self, adapter_id: AdapterId) -> Residency:
        """Where the adapter is believed to be."""
        presence = self._presences.get(adapter_id)
        return presence.residency if presence else _ABSENT

    def adapters(self, residency: Residency) -> tuple[AdapterId, ...]:
        """The adapters that are believed to be there, by id."""
        return tuple(sorted(a for a, p in self._presences.items() if p.residency is residency))

    def expect(self, adapter_id: AdapterId, now: float) -> Residency:
        """The worker was given a reason to load the adapter; where it was before."""
        residency = self.residency(adapter_id)
        if residency is _ABSENT or residency is _HOST:
            self.observe(adapter_id, _LOADING, now)
        return residency

    def observe(self, adapter_id: AdapterId, residency: Residency, now: float) -> None:
        """The adapter has come or gone."""
        presence = self._presences.setdefault(adapter_id, Presence(since_s=now))
        self._num_loading -= presence.residency is _LOADING
        presence.observe(residency, now)
        self._num_loading += residency is _LOADING
        if residency is _ABSENT:
            del self._presences[adapter_id]

    def report_adapters(
        self, reported: Mapping[AdapterId, Residency], now: float, load_timeout_s: float
    ) -> bool:
        """Believe what the worker says of each adapter that it has, or loads.

        What it was given a reason to load it may not have heard of yet; what has been expected for
        too long is given up. Returns whether an adapter has gone.
        """
        has_any_gone = False
        for adapter_id, presence in list(self._presences.items()):
            residency = reported.get(adapter_id, _ABSENT)
            if residency is _ABSENT or residency is _HOST:
                is_coming = presence.residency is _LOADING
                if not (is_coming and now - presence.since_s <= load_timeout_s):
                    has_any_gone |= presence.residency is not residency
                    self.observe(adapter_id, residency, now)
        for adapter_id, residency in reported.items():
            if residency is not _HOST or self.residency(adapter_id) is _ABSENT:
                self.observe(adapter_id, residency, now)
        return has_any_gone

    def check_invariants(self) -> None:
        """Assert that the sums are right and nothing is counted twice."""
        self.budget.check_invariants()
        assert self.budget.num_blocks == sum(c.num_blocks for c in self.started.values())
        assert self._ahead_blocks == sum(c.num_blocks for c in self.ahead.values())
        assert self.unexplained_blocks >= 0
        assert not self.started.keys() & self.ahead.keys()
        assert not self.foreign.keys() & set(self.admitted())
        assert len(self.started) <= self.capacity.max_num_seqs
        assert self.budget.used_bytes <= self.capacity.memory_bytes
        if self.ahead:
            assert not self._fits_now(next(iter(self.ahead.values()))), "one waits though it fits"
        assert all(p.residency is not _ABSENT for p in self._presences.values())
        loading = [p for p in self._presences.values() if p.residency is _LOADING]
        assert self._num_loading == len(loading)
        before = self.is_open, self._takes_ahead
        self._look_open()
        assert before == (self.is_open, self._takes_ahead)
