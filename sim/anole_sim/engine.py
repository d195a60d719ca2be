"""The simulated worker: what runs in each step, and how long that takes.

It is a model of an engine, not Anole's own: the same one is S-LoRA (prefills apart from decodes,
loads that block, admission every tenth step, adapters dropped after use) and a modern engine
(prompt chunks beside decodes, loads beside steps), by its options. Memory is one pool of bytes for
keys and values and adapters; which adapter goes is decided by the policies that ship.
"""

from bisect import insort
from collections.abc import Iterable

from anole_shared.ids import RequestId
from anole_sim.admission import Admission
from anole_sim.decoding import Decoding
from anole_sim.loads import Loads
from anole_sim.options import EngineOptions
from anole_sim.pace import Pace
from anole_sim.pool import Pool
from anole_sim.profile import Link, Profile
from anole_sim.sequence import Sequence
from anole_worker.core.adapter import Adapter
from anole_worker.core.residency import Residency

_LOOK_AHEAD_STEPS = frozenset({5, 7})


class Engine:
    """One worker's sequences and memory; its caller carries the time."""

    def __init__(
        self,
        options: EngineOptions,
        profile: Profile,
        *,
        link: Link,
        pool: Pool,
        pace: Pace,
        admission: Admission,
    ) -> None:
        self.options, self.profile, self.pool = options, profile, pool
        self.loads = Loads(link, pool, self._wanted)
        self.decoding = Decoding()
        self.line: dict[RequestId, Sequence] = {}
        """What was given to the worker and has not started, in order."""
        self.running: dict[RequestId, Sequence] = {}
        """What has started, in order of start."""
        self.first: list[Sequence] = []
        """Who has made a first token since its start; not told yet."""
        self.ended: list[Sequence] = []
        """Who has ended; not told yet."""
        self.is_stepping = False
        self.num_preemptions = 0
        self._pace, self._admission = pace, admission
        self._prefilling: list[tuple[float, int, Sequence]] = []
        self._tagged: set[Adapter] = set()
        self._since_admission = self._num_added = 0
        self._chunks: list[tuple[Sequence, int]] = []
        self._with_decodes = False
        self._begun_s = 0.0
        self._aborted: set[RequestId] = set()
        self._epoch = 0
        """Counts what changes an admission's answer; a step of decodes alone does not: what each
        sequence has more then it will need less."""
        self._stuck: tuple[RequestId, int] | None = None

    # What comes in.

    def add(self, sequence: Sequence, now: float) -> None:
        """A request has come."""
        self._num_added += 1
        sequence.order = self._num_added
        sequence.added_s = now
        self.line[sequence.request_id] = sequence
        if sequence.adapter is not None:
            self.pool.cache.used(sequence.adapter, now)

    def prefetch(self, adapter: Adapter, now: float) -> None:
        """A request that waits elsewhere will need the adapter."""
        if self.loads.residency(adapter) is Residency.ABSENT:
            self._tagged.add(adapter)
            self.loads.begin(adapter, now)

    def abort(self, request_id: RequestId, now: float) -> Sequence | None:
        """Stop a sequence; None where it is unknown, or ends with the step that runs."""
        waiting = self.line.pop(request_id, None)
        if waiting is not None:
            waiting.is_aborted = True
            return waiting
        if request_id not in self.running:
            return None
        if self.is_stepping:
            self._aborted.add(request_id)
            return None
        return self._stop(self.running[request_id], now)

    def loaded(self, adapter: Adapter, now: float) -> None:
        """The time is there at which a load was to end."""
        self._epoch += self.loads.end(adapter, now)

    # A step.

    def plan(self, now: float) -> float | None:
        """Begin a step; when it ends, None where nothing can run."""
        begin_s = now
        if self.line:
            if self._is_due():
                begin_s = self._start_ready(now)
            if self.options.looks_ahead and self._looks_now():
                self._look_ahead(now)
            if not self.options.is_blocking:
                self._load_ahead(now)
        if not self.running:
            return None
        self._with_decodes = self._choose_chunks()
        if self._with_decodes:
            self._make_decode_room(now)
        if not self._with_decodes and not self._chunks:
            return None
        self.is_stepping = True
        self._begun_s = begin_s
        return begin_s + self._seconds()

    def _is_due(self) -> bool:
        every = self.options.admit_every
        return every <= 1 or not self.running or self._since_admission >= every

    def _looks_now(self) -> bool:
        return self.options.admit_every <= 1 or self._since_admission in _LOOK_AHEAD_STEPS

    def _start_ready(self, now: float) -> float:
        """Move what can start out of the line; when its adapters are there."""
        ready_s = now
        left = self.options.max_batch_tokens
        started: list[Sequence] = []
        for sequence in self.line.values():
            if not self.options.is_blocking and not self._has_adapter(sequence):
                if self._is_starved(sequence, now):
                    break
                continue
            if (started and left < sequence.prompt) or not self._has_room(sequence, now):
                break
            left -= sequence.prompt
            started.append(sequence)
            ready_s = max(ready_s, self._start(sequence, now))
        for sequence in started:
            del self.line[sequence.request_id]
        if started:
            self._since_admission = 0
        return ready_s

    def _has_adapter(self, sequence: Sequence) -> bool:
        adapter = sequence.adapter
        return adapter is None or self.loads.residency(adapter) is Residency.RESIDENT

    def _is_starved(self, sequence: Sequence, now: float) -> bool:
        return sequence.has_no_room and now - sequence.added_s > self.options.bypass_s

    def _has_room(self, sequence: Sequence, now: float) -> bool:
        """Whether it may start; idle adapters have gone for it then."""
        if self._stuck == (sequence.request_id, self._epoch):
            return False
        needed = self._admission.bytes_now(sequence, self, self.pool)
        adapter = sequence.adapter
        if needed is not None:
            if adapter is not None and self.loads.residency(adapter) is Residency.ABSENT:
                needed += adapter.num_bytes
            if self.loads.make_room(needed, now, takes_wanted=True, kept=adapter):
                return True
        self._stuck = (sequence.request_id, self._epoch)
        return False

    def _start(self, sequence: Sequence, now: float) -> float:
        """Give a sequence its memory and adapter; when that is there."""
        self._epoch += 1
        self.running[sequence.request_id] = sequence
        self.pool.kv_tokens += sequence.prompt
        insort(self._prefilling, (self._pace.key(sequence), sequence.order, sequence))
        if sequence.adapter is None:
            return now
        ready_s = now
        if not self._has_adapter(sequence):
            ready_s = self.loads.wait(sequence.adapter, now)
        self.pool.cache.pin(sequence.adapter)
        return ready_s

    def _wanted(self) -> set[Adapter]:
        return {one.adapter for one in self.line.values() if one.adapter is not None}

    def _look_ahead(self, now: float) -> None:
        """Load for the batch that would be next."""
        left = self.options.max_batch_tokens
        wanted: dict[Adapter, None] = {}
        for sequence in self.line.values():
            left -= sequence.prompt
            if left < 0:
                break
            if sequence.adapter is not None:
                wanted[sequence.adapter] = None
        self._tagged = set(wanted)
        if not self.options.keeps_adapters:
            self._drop_untagged()
        for adapter in wanted:
            if self.loads.residency(adapter) is Residency.ABSENT:
                self.loads.begin(adapter, now)

    def _drop_untagged(self) -> None:
        """What was loaded for a batch that has changed its mind goes again."""
        cache = self.pool.cache
        for adapter in cache.adapters(Residency.RESIDENT):
            if adapter not in self._tagged and not cache.is_pinned(adapter):
                self.loads.drop(adapter)

    def _load_ahead(self, now: float) -> None:
        """Load what the line needs, in its order, a few at once."""
        for sequence in self.line.values():
            if self.loads.num >= self.options.max_loads:
                return
            adapter = sequence.adapter
            if adapter is None or self.loads.residency(adapter) is not Residency.ABSENT:
                continue
            sequence.has_no_room = not self.loads.begin(adapter, now)
            if sequence.has_no_room:
                return

    def _choose_chunks(self) -> bool:
        """What of the prompts the step runs; whether the decodes run, too."""
        decoding = self.decoding
        if not self._prefilling:
            self._chunks = []
            return decoding.num > 0
        if not self.options.is_chunked:
            self._chunks = [(one, one.prompt) for _, _, one in self._prefilling]
            return False
        backlog = sum(one.prompt - one.prefilled for _, _, one in self._prefilling)
        share = self._pace.share(rows=decoding.num, backlog=backlog)
        self._chunks = self._cut(share.prompt_tokens)
        return share.with_decodes and decoding.num > 0

    def _cut(self, num_tokens: int) -> list[tuple[Sequence, int]]:
        """The first so many tokens of the prompts in their order."""
        chunks: list[tuple[Sequence, int]] = []
        for _, _, one in self._prefilling:
            if num_tokens <= 0:
                break
            count = min(num_tokens, one.prompt - one.prefilled)
            chunks.append((one, count))
            num_tokens -= count
        return chunks

    def _seconds(self) -> float:
        rows = self.decoding.num if self._with_decodes else 0
        context = self.decoding.context + rows if rows else 0
        ranks = self.decoding.ranks if rows else 0
        if not self._chunks:
            return self.profile.decode_s(rows, context, ranks)
        tokens = squares = lora = token_ranks = 0
        for one, count in self._chunks:
            end = one.prefilled + count
            tokens += count
            squares += end * end - one.prefilled * one.prefilled
            lora += count if one.rank else 0
            token_ranks += count * one.rank
        return self.profile.mixed_s(
            num_rows=rows,
            context=context,
            ranks=ranks,
            prompts=len(self._chunks),
            prompt_tokens=tokens,
            squares=squares,
            lora_tokens=lora,
            token_ranks=token_ranks,
        )

    def _make_decode_room(self, now: float) -> None:
        """Every decode needs one more token's memory: idle adapters go, then the youngest."""
        while self.decoding.num:
            needed = self.decoding.num * self.profile.kv_bytes
            if self.loads.make_room(needed, now, takes_wanted=True):
                return
            self._preempt(next(reversed(self.running.values())), now)
            self._chunks = [chunk for chunk in self._chunks if chunk[0].request_id in self.running]
        self._with_decodes = False

    def _preempt(self, sequence: Sequence, now: float) -> None:
        """Its memory goes to others; it waits in front, to start again behind what it has made."""
        sequence.restart(self._leave(sequence, now))
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.line = {sequence.request_id: sequence, **self.line}

    def complete(self, now: float) -> None:
        """The step has ended: its tokens, and who has all of them."""
        self.is_stepping = False
        rows = self.decoding.num if self._with_decodes else 0
        self._pace.learn(
            prompt_tokens=sum(count for _, count in self._chunks),
            rows=rows,
            seconds=now - self._begun_s,
        )
        if rows:
            self._since_admission += 1
            self.pool.kv_tokens += rows
            for sequence in self.decoding.advance(now):
                self._finish(sequence, now)
        if self._chunks:
            self._complete_chunks(now)
        if self._aborted:
            stopped = [self.running[one] for one in self._aborted if one in self.running]
            self.ended += [self._stop(sequence, now) for sequence in stopped]
            self._aborted.clear()

    def _complete_chunks(self, now: float) -> None:
        for sequence, count in self._chunks:
            sequence.prefilled += count
            if sequence.prefilled < sequence.prompt:
                continue
            self.first.append(sequence)
            if sequence.to_make > 1:
                self.decoding.join(sequence, now)
            else:
                self._finish(sequence, now)
        self._prefilling = [e for e in self._prefilling if e[2].prefilled < e[2].prompt]
        self._chunks = []

    def _finish(self, sequence: Sequence, now: float) -> None:
        self._give_back(sequence, now)
        self.ended.append(sequence)

    def _stop(self, sequence: Sequence, now: float) -> Sequence:
        sequence.made_before += self._leave(sequence, now)
        sequence.is_aborted = True
        return sequence

    def _leave(self, sequence: Sequence, now: float) -> int:
        """A running sequence stops before its end; the tokens that it has made since its start."""
        made = 0
        if sequence.due_tick is None:
            self._prefilling = [entry for entry in self._prefilling if entry[2] is not sequence]
        else:
            made = self.decoding.steps(sequence) + 1
            self.decoding.leave(sequence)
        self._give_back(sequence, now)
        return made

    def _give_back(self, sequence: Sequence, now: float) -> None:
        self._epoch += 1
        del self.running[sequence.request_id]
        self.pool.kv_tokens -= sequence.prompt + self.decoding.steps(sequence)
        sequence.due_tick = None
        adapter, cache = sequence.adapter, self.pool.cache
        if adapter is None:
            return
        cache.unpin(adapter, now)
        is_kept = self.options.keeps_adapters or adapter in self._tagged
        if not is_kept and not cache.is_pinned(adapter):
            self.loads.drop(adapter)

    # What is known of it.

    @property
    def num_running(self) -> int:
        """Sequences that have started."""
        return len(self.running)

    @property
    def max_num_seqs(self) -> int:
        """How many may have."""
        return self.profile.max_num_seqs

    def held(self) -> Iterable[Sequence]:
        """Everything that has not ended, those that started first."""
        return (*self.running.values(), *self.line.values())

    def shares(self) -> Iterable[tuple[int, int]]:
        """Of each that runs: tokens that it is expected to make yet, and those that it holds."""
        for sequence in self.running.values():
            steps = self.decoding.steps(sequence)
            yield max(1, sequence.expected - steps), sequence.prompt + steps

    def check(self) -> None:
        """Assert that the sums are right."""
        assert self.pool.kv_tokens == sum(held for _, held in self.shares())
        decoding = [one for one in self.running.values() if one.due_tick is not None]
        assert self.decoding.num == len(decoding)
        assert self.decoding.ranks == sum(one.rank for one in decoding)
        assert not self.line.keys() & self.running.keys()
        self.pool.check()
