"""The worker's decisions: which sequences start, which adapters load, what the next step runs.

The shell asks for loads and steps, carries them out, and tells the results. Nothing here waits,
reads a clock or touches a tensor. The shell must complete (or fail) a step before it plans the
next; adds, aborts and loads may come at any time, also while a step runs.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from anole_shared.ids import AdapterId, RequestId
from anole_shared.units import div_ceil
from anole_worker.core.blocks import BlockPool
from anole_worker.core.residency import AdapterCache, Residency
from anole_worker.core.sequence import Ending, Phase, Sequence
from anole_worker.core.step import Row, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The engine's fixed sizes."""

    max_num_seqs: int
    """Sequences that run at once: rows of one step."""
    max_num_waiting: int
    """Sequences that may wait behind them."""
    token_budget: int
    """New tokens in one step, decodes and prompt chunks together."""
    block_size: int
    """Tokens per KV block."""
    vocab_size: int
    """Token ids that the model knows are below this."""
    bypass_s: float
    """How long others may pass a sequence for whose adapter there is no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAdapter:
    """Bring the adapter's weights into memory, after giving back the memory of evict."""

    adapter_id: AdapterId
    evict: tuple[AdapterId, ...]
    request_id: RequestId | None
    """The request that waits for it; None for a prefetch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a step brought to one sequence; with an ending, its last."""

    sequence: Sequence
    token_id: int | None
    ending: Ending | None


class Engine:
    """All sequences of one worker, its block pool and its adapter ledger."""

    def __init__(
        self,
        limits: EngineLimits,
        blocks: BlockPool,
        adapters: AdapterCache,
        eos_token_ids: frozenset[int],
        adapter_sizes: dict[AdapterId, int],
    ) -> None:
        """adapter_sizes: bytes of every adapter that this worker can load."""
        self.limits = limits
        self.blocks = blocks
        self.adapters = adapters
        self.adapter_sizes = adapter_sizes
        self._eos = eos_token_ids
        self._waiting: dict[RequestId, Sequence] = {}  # in order of arrival
        self._running: dict[RequestId, Sequence] = {}  # in order of start
        self._in_step: Step | None = None
        self._prefetch: dict[AdapterId, None] = {}

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Everything that has not ended."""
        return (*self._running.values(), *self._waiting.values())

    @property
    def num_running(self) -> int:
        """Sequences that have started."""
        return len(self._running)

    def __contains__(self, request_id: RequestId) -> bool:
        """Whether the request runs or waits here."""
        return request_id in self._running or request_id in self._waiting

    def refusal(self, sequence: Sequence) -> str | None:
        """Why the sequence can never run here, if so."""
        token_ids, needed = sequence.token_ids, div_ceil(sequence.max_len, self.limits.block_size)
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= self.limits.vocab_size:
            return f"its prompt is empty or has tokens outside 0..{self.limits.vocab_size - 1}"
        if needed > self.blocks.num_blocks:
            return f"it needs {needed} KV blocks, the pool has {self.blocks.num_blocks}"
        if len(self._waiting) >= self.limits.max_num_waiting:
            return f"{len(self._waiting)} sequences wait here already"
        return None if sequence.adapter_id is None else self._adapter_refusal(sequence.adapter_id)

    def _adapter_refusal(self, adapter_id: AdapterId) -> str | None:
        size = self.adapter_sizes.get(adapter_id)
        if size is None:
            return f"adapter {adapter_id!r} is not in this worker's adapter folder"
        if size > self.adapters.budget_bytes:
            return (
                f"adapter {adapter_id!r} takes {size} bytes, this worker's adapter memory "
                f"is {self.adapters.budget_bytes}: raise ANOLE_WORKER_ADAPTER_BYTES"
            )
        return None

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for its turn; the caller has asked refusal() first."""
        assert self.refusal(sequence) is None
        assert sequence.request_id not in self
        self._waiting[sequence.request_id] = sequence

    def abort(self, request_id: RequestId, now: float) -> Sequence | None:
        """End a sequence; the ended one, or None if it is unknown or a step is running with it.

        In the latter case complete_step() ends it.
        """
        sequence = self._running.get(request_id) or self._waiting.get(request_id)
        if sequence is None:
            return None
        if self._in_step and any(row.request_id == request_id for row in self._in_step.rows):
            sequence.is_aborted = True
            return None
        self._end(sequence, now)
        return sequence

    def prefetch(self, adapter_id: AdapterId) -> None:
        """Ask for an adapter that will be needed; forgotten where there is no idle room for it."""
        if adapter_id in self.adapter_sizes:
            self._prefetch[adapter_id] = None

    def plan_loads(self, now: float) -> list[LoadAdapter]:
        """Pin what waiting sequences need, in order of arrival, and say what must be loaded.

        Once one sequence finds no room for its adapter, no later one takes room away from it. They
        may still pin what is here, until it has waited for bypass_s: then they lose their pins, so
        that room comes as soon as the running sequences end.
        """
        loads: list[LoadAdapter] = []
        short: Sequence | None = None
        for sequence in self._waiting.values():
            adapter_id = sequence.adapter_id
            if short is not None and self._is_starved(short, now):
                self._unpin(sequence, now)
                continue
            if adapter_id is None or sequence.is_pinning:
                continue
            if self.adapters.residency(adapter_id) is Residency.ABSENT:
                load = None if short else self._start_load(adapter_id, sequence.request_id, now)
                if load is None:
                    short = short or sequence
                    continue
                loads.append(load)
            self.adapters.pin(adapter_id, now)
            sequence.is_pinning = True
        loads.extend(self._plan_prefetches(now))
        return loads

    def _plan_prefetches(self, now: float) -> Iterator[LoadAdapter]:
        wanted, self._prefetch = self._prefetch, {}
        for adapter_id in wanted:
            room = self.adapters.budget_bytes - self.adapters.used_bytes
            is_absent = self.adapters.residency(adapter_id) is Residency.ABSENT
            if is_absent and self.adapter_sizes[adapter_id] <= room:
                load = self._start_load(adapter_id, None, now)
                if load is not None:
                    yield load

    def _start_load(
        self, adapter_id: AdapterId, request_id: RequestId | None, now: float
    ) -> LoadAdapter | None:
        victims = self.adapters.start_load(adapter_id, self.adapter_sizes[adapter_id], now)
        if victims is None:
            return None
        return LoadAdapter(adapter_id=adapter_id, evict=victims, request_id=request_id)

    def adapter_loaded(self, adapter_id: AdapterId) -> None:
        """A load that plan_loads() asked for has ended well."""
        self.adapters.loaded(adapter_id)

    def adapter_failed(self, adapter_id: AdapterId, now: float) -> list[Sequence]:
        """A load has failed: the sequences that waited for it, now ended."""
        lost = [s for s in self._waiting.values() if s.adapter_id == adapter_id]
        for sequence in lost:
            self._end(sequence, now)
        self.adapters.load_failed(adapter_id)
        return lost

    def take_back(self, victims: Listing[AdapterId], now: float) -> list[AdapterId]:
        """After a failed load: its victims whose memory was not given back are here again.

        Returns those whose room is claimed by now: the shell must give their memory back.
        """
        return [
            victim
            for victim in victims
            if not self.adapters.take_back(victim, self.adapter_sizes[victim], now)
        ]

    def plan_step(self, now: float) -> Step | None:
        """Start what can start, then the next step: one token for each decode, prompts by chunks.

        Decodes come before prompt chunks within the token budget, so that a long prompt slows
        running streams by one chunk a step at most. None where nothing can run.
        """
        assert self._in_step is None, "a step is running"
        self._start_ready(now)
        budget = self.limits.token_budget
        rows: list[Row] = []
        decodes = (s for s in self._running.values() if s.phase is Phase.DECODE)
        prefills = (s for s in self._running.values() if s.phase is Phase.PREFILL)
        for sequence in (*decodes, *prefills):
            if budget == 0:
                break
            row = _row_of(sequence, budget)
            budget -= len(row.token_ids)
            rows.append(row)
        if not rows:
            return None
        rows.sort(key=lambda row: (row.adapter_id is not None, row.adapter_id or ""))
        self._in_step = Step(rows=tuple(rows))
        return self._in_step

    def _start_ready(self, now: float) -> None:
        """Move waiting sequences into the batch, in order of arrival.

        One that waits for its adapter may be passed: while the load runs, for as long as it runs;
        while there is no room for it, for bypass_s. One that waits for blocks is never passed.
        """
        for sequence in list(self._waiting.values()):
            if len(self._running) >= self.limits.max_num_seqs:
                return
            if not self._has_adapter(sequence):
                if not sequence.is_pinning and self._is_starved(sequence, now):
                    return
                continue
            blocks = self.blocks.allocate(div_ceil(sequence.max_len, self.limits.block_size))
            if blocks is None:
                return
            sequence.block_table = blocks
            sequence.move_to(Phase.PREFILL)
            del self._waiting[sequence.request_id]
            self._running[sequence.request_id] = sequence

    def _is_starved(self, sequence: Sequence, now: float) -> bool:
        """Whether a sequence without room for its adapter has been passed for long enough."""
        return now - sequence.arrived_s > self.limits.bypass_s

    def _has_adapter(self, sequence: Sequence) -> bool:
        if sequence.adapter_id is None:
            return True
        residency = self.adapters.residency(sequence.adapter_id)
        return sequence.is_pinning and residency is Residency.RESIDENT

    def complete_step(self, drawn: Listing[int | None], now: float) -> list[Output]:
        """Take in what a step drew, one entry a row, and end what has ended."""
        assert self._in_step is not None, "no step is running"
        step, self._in_step = self._in_step, None
        outputs: list[Output] = []
        for row, token_id in zip(step.rows, drawn, strict=True):
            sequence = self._running[row.request_id]
            sequence.num_computed_tokens += len(row.token_ids)
            if sequence.is_aborted:
                output = Output(sequence=sequence, token_id=None, ending=Ending.ABORT)
            elif token_id is not None:
                ending = self._append(sequence, token_id)
                output = Output(sequence=sequence, token_id=token_id, ending=ending)
            else:
                continue
            if output.ending is not None:
                self._end(sequence, now)
            outputs.append(output)
        return outputs

    def _append(self, sequence: Sequence, token_id: int) -> Ending | None:
        if sequence.phase is Phase.PREFILL:
            sequence.move_to(Phase.DECODE)
        sequence.token_ids.append(token_id)
        if token_id in self._eos and not sequence.ignore_eos:
            return Ending.STOP
        return Ending.LENGTH if sequence.num_output_tokens >= sequence.max_tokens else None

    def fail_step(self, now: float) -> list[Sequence]:
        """A step broke: its sequences, now ended. The rest goes on."""
        assert self._in_step is not None, "no step is running"
        step, self._in_step = self._in_step, None
        lost = [self._running[row.request_id] for row in step.rows]
        for sequence in lost:
            self._end(sequence, now)
        return lost

    def _end(self, sequence: Sequence, now: float) -> None:
        sequence.move_to(Phase.FINISHED)
        self._waiting.pop(sequence.request_id, None)
        self._running.pop(sequence.request_id, None)
        self.blocks.free(sequence.block_table)
        sequence.block_table = ()
        self._unpin(sequence, now)

    def _unpin(self, sequence: Sequence, now: float) -> None:
        if sequence.is_pinning and sequence.adapter_id is not None:
            self.adapters.unpin(sequence.adapter_id, now)
            sequence.is_pinning = False

    def check_invariants(self) -> None:
        """No block has two owners, nothing runs without its adapter, nothing is over its limit."""
        self.blocks.check_invariants()
        self.adapters.check_invariants()
        owned = [block for s in self._running.values() for block in s.block_table]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.blocks.num_free == self.blocks.num_blocks
        assert len(self._running) <= self.limits.max_num_seqs
        for sequence in self._running.values():
            assert self._has_adapter(sequence)
            assert sequence.phase in {Phase.PREFILL, Phase.DECODE}
        for sequence in self._waiting.values():
            assert sequence.phase is Phase.WAITING
            assert not sequence.block_table


def _row_of(sequence: Sequence, budget: int) -> Row:
    """The next tokens of a running sequence, at most budget of them."""
    start = sequence.num_computed_tokens
    token_ids = tuple(sequence.token_ids[start : start + budget])
    reaches_end = start + len(token_ids) == len(sequence.token_ids)
    return Row(
        request_id=sequence.request_id,
        adapter_id=sequence.adapter_id,
        token_ids=token_ids,
        start=start,
        block_table=sequence.block_table,
        sampling=sequence.sampling if reaches_end else None,
    )
