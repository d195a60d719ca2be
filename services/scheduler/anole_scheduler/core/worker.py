"""What is believed of one worker: its room, what it was given, which adapters it holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Presence, Residency
from anole_shared.ids import AdapterId, RequestId, WorkerId
from anole_shared.units import div_ceil


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker can hold at once."""

    max_num_seqs: int
    num_blocks: int
    block_size: int
    """Tokens per block."""
    max_model_len: int
    adapter_bytes: int

    @property
    def longest(self) -> int:
        """Tokens of the longest request that it can ever run."""
        return min(self.max_model_len, self.num_blocks * self.block_size)


class Worker:
    """A mirror of the worker's own admission.

    The worker reserves all blocks that a sequence can come to need before it starts it, and starts
    sequences in the order in which it got them. So of the requests that it was given some have
    *started* (they hold a seat and their blocks) and the later ones wait *ahead* of need; each end
    lets the first of these start. The worker may for a moment start a later one first, while the
    adapter of an earlier one loads; the sums are the same soon after.

    *Foreign* is what the worker runs and this scheduler did not give it: from before a restart, or
    of an attempt that was given up. It holds seats, and the blocks that nothing else explains.
    """

    def __init__(
        self, worker_id: WorkerId, *, model: str, capacity: Capacity, admit_ahead: int, now: float
    ) -> None:
        self.worker_id = worker_id
        self.model = model
        self.capacity = capacity
        self.seen_s = now
        self.is_draining = False
        """Whether it finishes what it has and takes nothing more."""
        self.folder: Mapping[AdapterId, Adapter] | None = None
        """The adapters that it has on disk; None until it has said so: it may have any."""
        self.started: dict[RequestId, int] = {}
        """Blocks of each started request."""
        self.ahead: dict[RequestId, int] = {}
        """Blocks of each request that waits at the worker, in order."""
        self.foreign: dict[RequestId, float] = {}
        """Since when each foreign request is known."""
        self.started_blocks = 0
        self.ahead_blocks = 0
        self.foreign_blocks = 0
        self._admit_ahead = admit_ahead
        self._presences: dict[AdapterId, Presence] = {}

    @property
    def num_admitted(self) -> int:
        """Requests that it was given and that have not ended."""
        return len(self.started) + len(self.ahead)

    @property
    def load(self) -> float:
        """Blocks that are promised, as a share of those there are; above 1 where some wait."""
        promised = self.started_blocks + self.ahead_blocks + self.foreign_blocks
        return promised / self.capacity.num_blocks

    def admitted(self) -> list[RequestId]:
        """The requests that it was given, those that started first."""
        return [*self.started, *self.ahead]

    def has(self, request_id: RequestId) -> bool:
        """Whether it was given the request."""
        return request_id in self.started or request_id in self.ahead

    def can_ever_run(self, request: Request) -> bool:
        """Whether it could run the request if it were idle."""
        return request.max_len <= self.capacity.longest and self.can_load(request.adapter_id)

    def can_load(self, adapter_id: AdapterId | None) -> bool:
        """Whether it has the adapter and memory for it, as far as is known."""
        if adapter_id is None or self.folder is None:
            return True
        adapter = self.folder.get(adapter_id)
        return (
            adapter is not None
            and adapter.refused is None
            and adapter.size_bytes <= self.capacity.adapter_bytes
        )

    def can_start(self, request: Request) -> bool:
        """Whether it would start the request at once."""
        return not self.ahead and self._fits_now(self._blocks_of(request))

    def has_room(self, request: Request) -> bool:
        """Whether the request may be given to it now."""
        seats = self.capacity.max_num_seqs + self._admit_ahead
        has_place_ahead = (
            len(self.ahead) < self._admit_ahead and self.num_admitted + len(self.foreign) < seats
        )
        return has_place_ahead or self.can_start(request)

    def _blocks_of(self, request: Request) -> int:
        return div_ceil(request.max_len, self.capacity.block_size)

    def _fits_now(self, num_blocks: int) -> bool:
        taken = self.started_blocks + self.foreign_blocks
        return (
            len(self.started) + len(self.foreign) < self.capacity.max_num_seqs
            and taken + num_blocks <= self.capacity.num_blocks
        )

    def admit(self, request: Request) -> None:
        """Count the request as given to the worker."""
        assert not self.has(request.request_id), f"{request.request_id} was admitted twice"
        num_blocks = self._blocks_of(request)
        self.ahead[request.request_id] = num_blocks
        self.ahead_blocks += num_blocks
        self._start_next()

    def release(self, request_id: RequestId) -> None:
        """Take back what the request held."""
        if request_id in self.started:
            self.started_blocks -= self.started.pop(request_id)
        else:
            self.ahead_blocks -= self.ahead.pop(request_id)
        self._start_next()

    def _start_next(self) -> None:
        while self.ahead:
            request_id, num_blocks = next(iter(self.ahead.items()))
            if not self._fits_now(num_blocks):
                return
            del self.ahead[request_id]
            self.ahead_blocks -= num_blocks
            self.started[request_id] = num_blocks
            self.started_blocks += num_blocks

    def disown(self, request: Request, now: float) -> None:
        """The worker may still run what it was given, but it is no longer ours."""
        num_blocks = self._blocks_of(request)
        self.release(request.request_id)
        self.foreign[request.request_id] = now
        self.foreign_blocks += num_blocks

    def forget_foreign(self, request_id: RequestId) -> None:
        """The worker has ended a foreign request; its blocks are known at the next report."""
        if self.foreign.pop(request_id, None) is not None and not self.foreign:
            self.foreign_blocks = 0
        self._start_next()

    def report_foreign(self, found: Iterable[RequestId], num_free_blocks: int, now: float) -> None:
        """Replace what is known of foreign requests by what the worker reports."""
        self.foreign = {request_id: self.foreign.get(request_id, now) for request_id in found}
        unexplained = self.capacity.num_blocks - num_free_blocks - self.started_blocks
        self.foreign_blocks = max(0, unexplained) if self.foreign else 0
        self._start_next()

    def residency(self, adapter_id: AdapterId) -> Residency:
        """Where the adapter is believed to be."""
        presence = self._presences.get(adapter_id)
        return presence.residency if presence else Residency.ABSENT

    def adapters(self, residency: Residency) -> tuple[AdapterId, ...]:
        """The adapters that are believed to be there, by id."""
        return tuple(sorted(a for a, p in self._presences.items() if p.residency is residency))

    def expect(self, adapter_id: AdapterId, now: float) -> None:
        """The worker was given a reason to load the adapter."""
        if self.residency(adapter_id) in {Residency.ABSENT, Residency.HOST}:
            self.observe(adapter_id, Residency.LOADING, now)

    def observe(self, adapter_id: AdapterId, residency: Residency, now: float) -> None:
        """The adapter has come or gone."""
        presence = self._presences.setdefault(adapter_id, Presence(since_s=now))
        presence.observe(residency, now)
        if residency is Residency.ABSENT:
            del self._presences[adapter_id]

    def report_adapters(
        self, reported: Mapping[AdapterId, Residency], now: float, load_timeout_s: float
    ) -> None:
        """Believe what the worker says of each adapter that it has, or loads.

        What it was given a reason to load it may not have heard of yet; what has been expected for
        too long is given up.
        """
        for adapter_id, presence in list(self._presences.items()):
            is_expected = (
                presence.residency is Residency.LOADING and now - presence.since_s <= load_timeout_s
            )
            if adapter_id not in reported and not is_expected:
                self.observe(adapter_id, Residency.ABSENT, now)
        for adapter_id, residency in reported.items():
            is_expected = self.residency(adapter_id) is Residency.LOADING
            if not (is_expected and residency is Residency.HOST):
                self.observe(adapter_id, residency, now)

    def check_invariants(self) -> None:
        """Assert that the sums are right and nothing is counted twice."""
        assert self.started_blocks == sum(self.started.values())
        assert self.ahead_blocks == sum(self.ahead.values())
        assert self.foreign_blocks >= 0
        assert not self.started.keys() & self.ahead.keys()
        assert not self.foreign.keys() & set(self.admitted())
        assert len(self.started) <= self.capacity.max_num_seqs
        assert self.started_blocks <= self.capacity.num_blocks
        if self.ahead:
            assert not self._fits_now(next(iter(self.ahead.values()))), "one waits though it fits"
        assert all(p.residency is not Residency.ABSENT for p in self._presences.values())
