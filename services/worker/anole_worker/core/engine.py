"""The worker's decisions: which sequences start, which adapters load, what the next step runs.

The shell asks for loads and steps, carries them out, and tells the results. Nothing here waits,
reads a clock or touches a tensor. The shell must complete (or fail) a step before it plans the
next; adds, aborts and loads may come at any time, also while a step runs.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Listing
from dataclasses import dataclass

from anole_shared.ids import RequestId
from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.loading import LoadAdapter, Loading
from anole_worker.core.memory import Memory
from anole_worker.core.pace import FixedPace, Pace
from anole_worker.core.paging import Paging
from anole_worker.core.prefetch import ArrivalHistogram
from anole_worker.core.prefix import Digest
from anole_worker.core.residency import Residency
from anole_worker.core.rows import row_of
from anole_worker.core.sequence import Ending, Phase, Sequence
from anole_worker.core.step import Drawn, Row, Step, TokenLogprobs
from anole_worker.core.step_budget import StepShare
from anole_worker.core.waiting import Waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The engine's fixed sizes."""

    max_num_seqs: int
    """Sequences that run at once: rows of one step."""
    max_num_waiting: int
    """Sequences that may wait behind them."""
    token_budget: int
    """New tokens in one step, decodes and prompt chunks together, at most."""
    block_size: int
    """Tokens per KV block."""
    vocab_size: int
    """Token ids that the model knows are below this."""
    max_loads: int
    """Adapters that may be on their way at once."""
    bypass_s: float
    """How long others may pass a sequence for whose adapter there is no room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a step brought to one sequence; with an ending, its last."""

    sequence: Sequence
    token_id: int | None
    ending: Ending | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """With the first token, where asked for."""


class Engine:
    """All sequences of one worker, and the memory that they share with adapters."""

    def __init__(
        self,
        limits: EngineLimits,
        memory: Memory,
        eos_token_ids: frozenset[int],
        predictor: ArrivalHistogram | None = None,
        pace: Pace | None = None,
    ) -> None:
        """predictor: guesses which adapters to load before they are asked for; None: no guesses.

        pace: how prompts and streams share steps; None: by the token budget alone.
        """
        self.limits = limits
        self.memory = memory
        self.num_preemptions = 0
        self.is_guessing = predictor is not None
        """Whether plan_loads() may have something to load though nothing has happened."""
        self._paging = Paging(memory, limits.block_size)
        self._loading = Loading(memory, max_loads=limits.max_loads, predictor=predictor)
        self._eos = eos_token_ids
        self._waiting = Waiting()
        self._short: Sequence | None = None  # the first that waits, if that is for blocks
        self._running: dict[RequestId, Sequence] = {}  # in order of start
        self._pace = pace or FixedPace(limits.token_budget)
        self._in_step: Step | None = None
        self._planned_s = 0.0
        self._load = {"rows": 0, "prompt_tokens": 0}  # of the step
        self._num_added = 0

    @property
    def sequences(self) -> tuple[Sequence, ...]:
        """Everything that has not ended."""
        return (*self._running.values(), *self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that have started."""
        return len(self._running)

    def __contains__(self, request_id: RequestId) -> bool:
        """Whether the request runs or waits here."""
        return request_id in self._running or request_id in self._waiting

    def refusal(self, sequence: Sequence) -> str | None:
        """Why the sequence can never run here, if so."""
        token_ids = sequence.token_ids
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= self.limits.vocab_size:
            return f"its prompt is empty or has tokens outside 0..{self.limits.vocab_size - 1}"
        if len(self._waiting) >= self.limits.max_num_waiting:
            return f"{len(self._waiting)} sequences wait here already"
        return self._too_large(sequence)

    def _too_large(self, sequence: Sequence) -> str | None:
        num_blocks = div_ceil(sequence.max_len, self.limits.block_size)
        if self.memory.fits(num_blocks, sequence.adapter):
            return None
        return (
            f"it needs {num_blocks} KV blocks of {self.memory.block_bytes} bytes and "
            f"{sequence.adapter.num_bytes if sequence.adapter else 0} bytes for its adapter, "
            f"this worker's memory is {self.memory.budget_bytes}: ask for fewer tokens, or "
            "raise ANOLE_WORKER_MEMORY_BYTES"
        )

    def add(self, sequence: Sequence, now: float) -> None:
        """Let a sequence wait for its turn.

        The caller has asked refusal() before, perhaps a moment ago: more may wait by now.
        """
        assert self._too_large(sequence) is None
        assert sequence.request_id not in self
        self._num_added += 1
        sequence.order = self._num_added
        self._waiting.add(sequence)
        if sequence.adapter is not None:
            self._loading.arrived(sequence.adapter, now)

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

    def prefetch(self, adapter: Adapter, now: float) -> None:
        """A request that waits elsewhere will need the adapter; see collect_declined()."""
        self._loading.hint(adapter, now)

    def collect_declined(self) -> tuple[Adapter, ...]:
        """What was to be loaded and will not be: whoever asked must not expect it."""
        return self._loading.collect_declined()

    def retire(self, adapter: Adapter) -> None:
        """The adapter was replaced by another content: nobody will ask for this one again."""
        self.memory.adapters.retire(adapter)

    def plan_loads(self, now: float) -> list[LoadAdapter]:
        """What to load now. Give memory.collect_stripped() back before the next step."""
        headroom_bytes = len(self._running) * self.memory.block_bytes
        return self._loading.plan(self._waiting, headroom_bytes, now, self._short)

    def adapter_loaded(self, adapter: Adapter) -> None:
        """A load that plan_loads() asked for has ended well."""
        self.memory.adapters.loaded(adapter)

    def adapter_failed(self, adapter: Adapter, now: float) -> list[Sequence]:
        """A load has failed: the sequences that waited for it, now ended."""
        lost = [sequence for sequence in self._waiting if sequence.adapter == adapter]
        for sequence in lost:
            self._end(sequence, now)
        self.memory.adapters.load_failed(adapter)
        return lost

    def adapter_replaced(self, old: Adapter, new: Adapter, now: float) -> list[Sequence]:
        """A load has failed because the adapter's content is another by now.

        Who waited for the old content waits for the new one; returns those that it is too large
        for, now ended.
        """
        lost: list[Sequence] = []
        for sequence in self._waiting.turn_to(new, old):
            if self._too_large(sequence) is None:
                self._loading.arrived(new, now)
            else:
                self._end(sequence, now)
                lost.append(sequence)
        self.memory.adapters.load_failed(old)
        return lost

    def take_back(self, victims: Listing[Adapter]) -> list[Adapter]:
        """After a failed load: its victims whose memory was not given back are here again.

        Returns those whose room is claimed by now: the shell must give their memory back.
        """
        return [victim for victim in victims if not self.memory.take_back(victim)]

    def give_up(self, num_bytes: int, now: float) -> tuple[Adapter, ...]:
        """Let idle adapters go for the host's sake: the shell must give their memory back."""
        return self._loading.give_up(num_bytes, self._waiting.adapters, now)

    def plan_step(self, now: float) -> Step | None:
        """Start what can start, then the next step: one token for each decode, prompts by chunks.

        How many prompt tokens ride along with the decodes, or run without them, is the pace's to
        say: running streams wait for a bounded time. None where nothing can run. Afterwards
        memory.collect_evicted() has the adapters that have gone for keys and values.
        """
        assert self._in_step is None, "a step is running"
        self._start_ready(now)
        share = self._share()
        decodes = [*self._decode_rows(now)] if share.with_decodes else []
        prompts = [*self._prefill_rows(share.prompt_tokens, now)]
        if not prompts and not share.with_decodes:
            decodes = [*self._decode_rows(now)]
        if not decodes and not prompts:
            return None
        rows = sorted((*decodes, *prompts), key=lambda row: row.adapter_order)
        self._in_step = Step(rows=tuple(rows))
        self._planned_s = now
        num_prompt_tokens = sum(len(row.token_ids) for row in prompts)
        self._load = {"rows": len(decodes), "prompt_tokens": num_prompt_tokens}
        return self._in_step

    def _share(self) -> StepShare:
        """What of the running sequences the next step runs."""
        rows = backlog = 0
        for sequence in self._running.values():
            if sequence.phase is Phase.PREFILL:
                backlog += len(sequence.token_ids) - sequence.num_computed_tokens
            else:
                rows += 1
        return self._pace.share(rows=rows, backlog=backlog)

    def _start_ready(self, now: float) -> None:
        """Move waiting sequences into the batch, in order of arrival.

        One that waits for its adapter may be passed: while it waits for a load or the load runs,
        for as long as that takes; while there is no room for it, for bypass_s. One that waits for
        blocks is never passed.
        """
        self._short = None
        for sequence in list(self._waiting):
            if len(self._running) >= self.limits.max_num_seqs:
                return
            if sequence.adapter is not None:
                residency = self.memory.adapters.residency(sequence.adapter)
                if residency is Residency.ABSENT and self._is_starved(sequence, now):
                    return
                if residency is not Residency.RESIDENT:
                    continue
            own = () if sequence.adapter is None else (sequence.adapter,)
            wanted = self._loading.wanted(self._waiting.adapters, now, kept=own)
            if not self._paging.open(sequence, now, wanted, headroom=len(self._running)):
                self._short = sequence
                return
            sequence.move_to(Phase.PREFILL)
            self._waiting.remove(sequence)
            self._running[sequence.request_id] = sequence
            if sequence.adapter is not None:
                self.memory.adapters.pin(sequence.adapter)

    def _is_starved(self, sequence: Sequence, now: float) -> bool:
        """Whether there has been no room for its adapter for so long that nobody may pass."""
        has_no_room = sequence.adapter == self._loading.no_room_for
        return has_no_room and now - sequence.arrived_s > self.limits.bypass_s

    def _decode_rows(self, now: float) -> Iterator[Row]:
        """The oldest first: where blocks run out, the youngest give theirs up and wait again."""
        decodes = [s for s in self._running.values() if s.phase is Phase.DECODE]
        for sequence in sorted(decodes, key=lambda s: s.order):
            if sequence.phase is Phase.DECODE and self._can_grow(sequence, now):
                yield row_of(sequence, 1, self._eos)

    def _can_grow(self, sequence: Sequence, now: float) -> bool:
        """Whether the sequence has blocks for its next token, by whatever has to go for it."""
        wanted = self._loading.wanted(self._waiting.adapters, now)
        while not self._paging.grow(sequence, len(sequence.token_ids), now, wanted):
            youngest = max(self._running.values(), key=lambda s: s.order)
            if youngest is sequence and len(self._running) == 1:
                return False  # an adapter that is being loaded holds the memory: soon it can go
            self._preempt(youngest, now)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence, now: float) -> None:
        self._let_go(sequence, now)
        sequence.move_to(Phase.WAITING)
        sequence.num_preemptions += 1
        sequence.scored.clear()
        self.num_preemptions += 1
        del self._running[sequence.request_id]
        self._waiting.put_back(sequence)

    def _prefill_rows(self, budget: int, now: float) -> Iterator[Row]:
        """Chunks, as the pace orders; what another row of the step computes is left to that row."""
        filled: set[Digest] = set()
        prompts = [s for s in self._running.values() if s.phase is Phase.PREFILL]
        for sequence in sorted(prompts, key=self._pace.key):
            if budget <= 0:
                return
            self._paging.reuse(sequence, now)
            num_tokens = self._paging.num_own_tokens(sequence, filled, budget)
            if num_tokens == 0:
                continue
            row = row_of(sequence, num_tokens, self._eos)
            budget -= len(row.token_ids)
            filled.update(self._paging.digests(sequence, row.start + len(row.token_ids)))
            yield row

    def complete_step(self, drawn: Listing[Drawn], now: float) -> list[Output]:
        """Take in what a step brought, one entry a row, and end what has ended."""
        assert self._in_step is not None, "no step is running"
        step, self._in_step = self._in_step, None
        self._pace.learn(seconds=now - self._planned_s, **self._load)
        outputs: list[Output] = []
        for row, found in zip(step.rows, drawn, strict=True):
            sequence = self._running[row.request_id]
            self._paging.computed(sequence, len(row.token_ids))
            output = self._output(sequence, found)
            if output is None:
                continue
            if output.ending is not None:
                self._end(sequence, now)
            outputs.append(output)
        return outputs

    def _output(self, sequence: Sequence, found: Drawn) -> Output | None:
        sequence.scored += found.scored
        if sequence.is_aborted:
            return Output(sequence=sequence, token_id=None, ending=Ending.ABORT)
        if found.token_id is None:
            return None
        scored, sequence.scored = tuple(sequence.scored), []
        return Output(
            sequence=sequence,
            token_id=found.token_id,
            ending=self._append(sequence, found.token_id),
            logprobs=found.logprobs,
            prompt_logprobs=scored,
        )

    def _append(self, sequence: Sequence, token_id: int) -> Ending | None:
        if sequence.phase is Phase.PREFILL:
            sequence.move_to(Phase.DECODE)
        sequence.token_ids.append(token_id)
        stopping = sequence.stopping
        is_eos = token_id in self._eos and not stopping.ignore_eos
        if is_eos or token_id in stopping.stop_token_ids:
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
        if self._running.pop(sequence.request_id, None) is not None:
            self._let_go(sequence, now)
        else:
            self._waiting.remove(sequence)
            self._loading.left(sequence.adapter, self._waiting.adapters)
        sequence.move_to(Phase.FINISHED)

    def _let_go(self, sequence: Sequence, now: float) -> None:
        """Take back what a running sequence holds."""
        self._paging.close(sequence, now)
        if sequence.adapter is not None:
            self.memory.adapters.unpin(sequence.adapter, now)

    def check_invariants(self) -> None:
        """No block without an owner, nothing runs without its adapter, nothing over its limit."""
        self.memory.check_invariants()
        owned = {block for s in self._running.values() for block in s.block_table}
        assert len(owned) == self.memory.blocks.num_owned
        assert len(self._running) <= self.limits.max_num_seqs
        for sequence in self._running.values():
            assert sequence.phase in {Phase.PREFILL, Phase.DECODE}
            assert len(set(sequence.block_table)) == len(sequence.block_table)
            if sequence.adapter is not None:
                assert self.memory.adapters.is_pinned(sequence.adapter)
        self._waiting.check_invariants()
        for sequence in self._waiting:
            assert sequence.phase is Phase.WAITING
            assert not sequence.block_table
