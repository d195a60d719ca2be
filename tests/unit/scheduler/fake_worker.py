"""A worker as the scheduler's core meets it: what it runs, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter

from anole_scheduler.core.events import AdapterMoved, WorkerSeen
from anole_scheduler.core.memory import Budget, Capacity, Charge
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_shared.units import div_ceil


@dataclass
class FakeWorker:
    """Runs sequences in the order in which it got them, as many as seats and memory allow."""

    name: str
    capacity: Capacity
    sequences: dict[str, Request] = field(default_factory=dict)
    resident: set[str] = field(default_factory=set)
    aborting: set[str] = field(default_factory=set)
    is_muted: bool = False
    loses_next: bool = False
    loading: set[str] = field(default_factory=set)
    adapter_bytes: dict[str, int] = field(default_factory=dict)
    overrun_blocks: int = 0
    """Taken beyond what was predicted."""
    predict: Callable[[Request], int] = attrgetter("max_tokens")

    def started(self) -> list[Request]:
        return [sequence for sequence, _ in self._started()]

    def _started(self) -> list[tuple[Request, Charge]]:
        started: list[tuple[Request, Charge]] = []
        budget = Budget(self.capacity.block_bytes)
        for sequence in self.sequences.values():
            charge = self._charge(sequence)
            too_much = budget.used_bytes + budget.needed(charge) > self.capacity.memory_bytes
            if too_much or len(started) == self.capacity.max_num_seqs:
                break
            budget.take(charge)
            started.append((sequence, charge))
        return started

    def longest(self, sequence: Request) -> int:
        return self.capacity.longest(self._charge(sequence).adapter_bytes)

    def _charge(self, sequence: Request) -> Charge:
        adapter_bytes = self.adapter_bytes.get(sequence.adapter_id or "", 0)
        num_tokens = sequence.num_prompt_tokens + self.predict(sequence)
        num_blocks = div_ceil(num_tokens, self.capacity.block_size)
        return Charge(num_blocks, sequence.adapter_id, adapter_bytes)

    def num_free_blocks(self) -> int:
        owned = sum(charge.num_blocks for _, charge in self._started())
        return max(self.capacity.num_blocks - owned - self.overrun_blocks, 0)

    def report(self) -> WorkerSeen:
        return WorkerSeen(
            worker_id=self.name,
            model="tiny",
            capacity=self.capacity,
            running=tuple(self.sequences),
            num_free_blocks=self.num_free_blocks(),
            resident=tuple(sorted(self.resident)),
        )

    def moved(self, adapter_id: str, residency: Residency) -> AdapterMoved:
        return AdapterMoved(worker_id=self.name, adapter_id=adapter_id, residency=residency)
