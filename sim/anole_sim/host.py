"""A simulated worker's voice: the messages between its engine and the scheduler."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

from anole_scheduler.core import adapter as scheduled
from anole_scheduler.core.events import AdapterMoved, AdaptersFound, SequenceEnded, WorkerSeen
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency as Believed
from anole_shared.ids import AdapterId, RequestId, WorkerId
from anole_shared.units import div_ceil
from anole_sim.engine import Engine
from anole_sim.profile import Link
from anole_sim.sequence import Sequence
from anole_sim.workload import Ask, adapter_name
from anole_worker.core.adapter import Adapter
from anole_worker.core.residency import Residency

_MODEL = "simulated"
_BELIEVED = {
    Residency.ABSENT: Believed.ABSENT,
    Residency.LOADING: Believed.LOADING,
    Residency.RESIDENT: Believed.RESIDENT,
}
_MAX_REMEMBERED = 10_000


class Host:
    """Takes commands for one engine, and makes events of what it does."""

    def __init__(
        self,
        worker_id: WorkerId,
        *,
        engine: Engine,
        adapters: Mapping[AdapterId, Adapter],
        capacity: Capacity,
        link: Link,
        expected: Callable[[Request, int], int],
    ) -> None:
        """expected: how long the engine thinks an answer will be; told how long it really is."""
        self.worker_id = worker_id
        self.engine = engine
        self.is_awake = False
        """Whether it runs a step, or is about to look for one."""
        self._adapters = adapters
        self._capacity = capacity
        self._link = link
        self._expected = expected
        self._seen: OrderedDict[tuple[RequestId, int], None] = OrderedDict()

    def isolated_s(self, ask: Ask) -> float:
        """What the request would take here alone, with its adapter's load."""
        profile = self.engine.profile
        adapter = self._adapter(ask.adapter)
        load_s = self._link.seconds(adapter.num_bytes) if adapter else 0.0
        rank = adapter.rank if adapter else 0
        return load_s + profile.isolated_s(ask.input_tokens, ask.output_tokens, rank)

    def has_adapter(self, place: int) -> bool:
        """Whether the adapter at that place is resident here."""
        adapter = self._adapters[adapter_name(place)]
        return self.engine.loads.residency(adapter) is Residency.RESIDENT

    def _adapter(self, place: int) -> Adapter | None:
        return None if place < 0 else self._adapters[adapter_name(place)]

    def admit(
        self, request: Request, ask: Ask, num_before: int, arrived_s: float, now: float
    ) -> None:
        """Take a request; one that has come before is not taken again."""
        key = (request.request_id, request.attempt)
        if key in self._seen or self._has(request.request_id):
            return
        self._seen[key] = None
        if len(self._seen) > _MAX_REMEMBERED:
            self._seen.popitem(last=False)
        adapter = self._adapter(ask.adapter)
        left = ask.output_tokens - num_before
        self.engine.add(
            Sequence(
                request_id=request.request_id,
                attempt=request.attempt,
                adapter=adapter,
                rank=adapter.rank if adapter else 0,
                prompt=request.num_prompt_tokens,
                to_make=left,
                expected=self._expected(request, left),
                arrived_s=arrived_s,
            ),
            now,
        )

    def _has(self, request_id: RequestId) -> bool:
        return request_id in self.engine.line or request_id in self.engine.running

    def prefetch(self, adapter_id: AdapterId, now: float) -> None:
        """Load an adapter that a waiting request will need."""
        adapter = self._adapters[adapter_id]
        self.engine.prefetch(adapter, now)
        if self.engine.loads.residency(adapter) is Residency.ABSENT:
            # Said at once, lest the scheduler wait for what does not come.
            self.engine.loads.moved.append((adapter, Residency.ABSENT))

    def abort(self, request_id: RequestId, now: float) -> None:
        """Stop a request; the engine tells when it has."""
        stopped = self.engine.abort(request_id, now)
        if stopped is not None:
            self.engine.ended.append(stopped)

    def report(self) -> WorkerSeen:
        """How it stands."""
        engine = self.engine
        block = self._capacity.block_size
        used = div_ceil(engine.pool.kv_tokens, block)
        cache = engine.pool.cache
        return WorkerSeen(
            worker_id=self.worker_id,
            model=_MODEL,
            capacity=self._capacity,
            running=[one.request_id for one in engine.held()],
            num_free_blocks=max(0, self._capacity.num_blocks - used),
            resident=[one.adapter_id for one in cache.adapters(Residency.RESIDENT)],
        )

    def folder(self) -> AdaptersFound:
        """All adapters there are: every worker has each on disk."""
        return AdaptersFound(
            worker_id=self.worker_id,
            adapters=[
                scheduled.Adapter(
                    adapter_id=one.adapter_id,
                    rank=one.rank,
                    target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
                    size_bytes=one.num_bytes,
                    generation=one.generation,
                )
                for one in self._adapters.values()
            ],
        )

    def moved(self, adapter: Adapter, residency: Residency) -> AdapterMoved:
        """An adapter has come or gone."""
        return AdapterMoved(
            worker_id=self.worker_id,
            adapter_id=adapter.adapter_id,
            residency=_BELIEVED[residency],
        )

    def ended(self, run: Sequence) -> SequenceEnded:
        """A request holds nothing any more."""
        return SequenceEnded(
            worker_id=self.worker_id,
            request_id=run.request_id,
            attempt=run.attempt,
            num_output_tokens=run.made_before + (0 if run.is_aborted else run.to_make),
            was_finished=not run.is_aborted,
        )
