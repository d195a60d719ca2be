"""How many decisions a second the scheduler's core takes, and what a waiting request costs it.

The core that ships, driven as the shell drives it: arrivals, ends, loads. Requests are invented,
and nobody computes anything: a running request ends when its turn comes, and a load that was asked
for has come by the next event. The line is long throughout, so that every end is followed by an
admission.
"""

import gc
import itertools
import tracemalloc
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from anole_scheduler import garbage
from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.commands import Admit, Command, Prefetch
from anole_scheduler.core.events import (
    AdapterMoved,
    AdaptersFound,
    Event,
    RequestArrived,
    SequenceEnded,
    WorkerSeen,
)
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.policies.standard import ADMISSIONS, policies
from anole_scheduler.core.predictor import OnlinePredictor
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.scheduler import Scheduler
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId
from anole_shared.units import GiB, MiB
from bench.interleaving import in_turns
from bench.section import Plan, progress
from bench.table import Column, Record, Table

NUM_WAITING, NUM_ADAPTERS = 100_000, 1_000
RANKS = (8, 16, 32, 64, 128)
_EVENTS_A_SECOND = 100.0
_CAPACITY = Capacity(
    max_num_seqs=256,
    block_size=16,
    block_bytes=8 * MiB,
    memory_bytes=31 * GiB,
    max_model_len=16_384,
)
"""Llama-2-7B on a card of 48 GB."""
_LIMITS = Limits(
    max_waiting=10**9,
    max_unfinished=10**9,
    admit_ahead=4,
    output_share=1.0,
    max_prefetch=4,
    max_loads=4,
    no_worker_timeout_s=1e9,
    worker_timeout_s=1e9,
    lost_after_s=1e9,
    orphan_timeout_s=1e9,
    settle_s=0,
    load_timeout_s=1e9,
    max_ended=8192,
)


def adapters() -> list[Adapter]:
    """The ranks in equal shares, 2 MiB a rank."""
    return [
        Adapter(
            adapter_id=AdapterId(f"adapter-{index:04}"),
            rank=rank,
            target_modules=("q_proj", "k_proj", "v_proj", "o_proj"),
            size_bytes=rank * 2 * MiB,
            generation="1",
        )
        for index, rank in zip(range(NUM_ADAPTERS), itertools.cycle(RANKS), strict=False)
    ]


def requests(count: int, seed: int) -> list[Request]:
    """Lengths spread as in conversations, adapters by Zipf."""
    draw = np.random.default_rng(seed)
    prompts = np.clip(draw.lognormal(5.0, 1.0, count), 4, 4000).astype(int)
    outputs = np.clip(draw.lognormal(4.0, 1.0, count), 1, 1000).astype(int)
    weights = 1 / np.arange(1, NUM_ADAPTERS + 1)
    chosen = draw.choice(NUM_ADAPTERS, size=count, p=weights / weights.sum())
    return [
        Request(
            request_id=RequestId(f"{seed:04}-{number:08}-0123456789abcdef"),
            attempt=0,
            gateway_id=GatewayId("gateway"),
            adapter_id=AdapterId(f"adapter-{adapter:04}"),
            num_prompt_tokens=int(prompt),
            max_tokens=int(output),
        )
        for number, (prompt, output, adapter) in enumerate(
            zip(prompts, outputs, chosen, strict=True)
        )
    ]


@dataclass(frozen=True, slots=True)
class _Running:
    worker_id: WorkerId
    request: Request


class Rig:
    """A scheduler with busy workers and a long line."""

    def __init__(self, policy: str, num_workers: int) -> None:
        self._scheduler = Scheduler(
            _LIMITS, policies(policy), adapters(), predictor=OnlinePredictor()
        )
        self._running: deque[_Running] = deque()
        self._now = 0.0
        for number in range(num_workers):
            worker_id = WorkerId(f"worker-{number:02}")
            self._tell(
                WorkerSeen(
                    worker_id=worker_id,
                    model="model",
                    capacity=_CAPACITY,
                    running=(),
                    num_free_blocks=_CAPACITY.num_blocks,
                    resident=(),
                )
            )
            self._tell(AdaptersFound(worker_id=worker_id, adapters=adapters()))

    @property
    def num_waiting(self) -> int:
        return self._scheduler.num_waiting

    def arrive(self, arrivals: Iterable[Request]) -> None:
        """One after the other."""
        for request in arrivals:
            self._now += 1 / _EVENTS_A_SECOND
            self._tell(RequestArrived(request=request))

    def turn_over(self, arrivals: Iterable[Request]) -> None:
        """An end and an arrival in turns."""
        for request in arrivals:
            self._now += 1 / _EVENTS_A_SECOND
            if self._running:
                ended = self._running.popleft()
                self._tell(
                    SequenceEnded(
                        worker_id=ended.worker_id,
                        request_id=ended.request.request_id,
                        attempt=0,
                        num_output_tokens=ended.request.max_tokens,
                    )
                )
            self._tell(RequestArrived(request=request))

    def _tell(self, event: Event) -> None:
        pending = deque([event])
        while pending:
            for command in self._scheduler.handle(pending.popleft(), self._now):
                pending += self._consequences(command)

    def _consequences(self, command: Command) -> list[Event]:
        match command:
            case Admit(worker_id=worker_id, request=request, residency=residency):
                self._running.append(_Running(worker_id, request))
                if request.adapter_id is not None and residency is not Residency.RESIDENT:
                    return [_loaded(worker_id, request.adapter_id)]
            case Prefetch(worker_id=worker_id, adapter_id=adapter_id):
                return [_loaded(worker_id, adapter_id)]
            case _:
                pass
        return []


def _loaded(worker_id: WorkerId, adapter_id: AdapterId) -> AdapterMoved:
    return AdapterMoved(worker_id=worker_id, adapter_id=adapter_id, residency=Residency.RESIDENT)


def bytes_waiting(policy: str, count: int) -> float:
    """What one of so many waiting requests takes, its own fields included."""
    rig = Rig(policy, num_workers=1)
    rig.turn_over(requests(2000, seed=1))
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        num_before = rig.num_waiting
        rig.arrive(requests(count, seed=2))
        gc.collect()
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    return used / (rig.num_waiting - num_before)


def measure(plan: Plan) -> list[Table]:
    """Every policy, one worker and several, with garbage looked for as the service does."""
    with garbage.looked_for_rarely():
        return _measure(plan)


def _measure(plan: Plan) -> list[Table]:
    count = 10_000 if plan.is_quick else NUM_WAITING
    rows: list[Record] = []
    for policy in ADMISSIONS:
        progress(f"    {policy}: {count} waiting")
        rates = {f"rate{n}": _rate(policy, n, count, plan.rounds) for n in (1, 4, 16)}
        used = bytes_waiting(policy, count)
        rows.append({"policy": policy, "waiting": count, "bytes": used, **rates})
    return [
        Table(
            name="decisions",
            title="Arrivals and ends handled a second, one core",
            columns=(
                Column(key="policy", title="policy"),
                Column(key="waiting", title="waiting"),
                Column(key="rate1", title="1 worker", form=",.0f"),
                Column(key="rate4", title="4 workers", form=",.0f"),
                Column(key="rate16", title="16 workers", form=",.0f"),
                Column(key="bytes", title="bytes a waiting request", form=",.0f"),
            ),
            rows=tuple(rows),
            note=f"{NUM_ADAPTERS} adapters, popularity Zipf. Loads that come are handled besides "
            "and not counted. Workers of 256 seats and 31 GiB.",
        )
    ]


def _rate(policy: str, num_workers: int, count: int, rounds: int) -> float:
    rig = Rig(policy, num_workers)
    rig.arrive(requests(count, seed=3))
    size = 2000
    batches = iter([requests(size, seed=100 + number) for number in range(rounds + 1)])
    times = in_turns({"turns": lambda: rig.turn_over(next(batches))}, rounds)
    return 2 * size / times["turns"].median_s
