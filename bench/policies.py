"""Which eviction policy keeps the right adapters: the worker's own ledger, invented requests.

The ledger and the policies are those that serve; only requests and the time that a load takes are
made up. Requests are served in order of arrival, each holds its adapter for a while, and one
adapter is loaded at a time. The clairvoyant knows all requests to come and drops what is needed
last (L. Belady, "A study of replacement algorithms for virtual-storage computers", 1966): a bound
that no policy reaches, exact only if all adapters were of one size.
"""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anole_shared.ids import AdapterId
from anole_shared.units import MiB, region_bytes
from anole_worker import model_shape
from anole_worker.core import eviction
from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.eviction import EvictionPolicy, Usage
from anole_worker.core.memory import Memory
from anole_worker.core.residency import AdapterCache, Residency
from anole_worker.model_shape import ModelShape
from bench.section import Plan, progress
from bench.table import Column, Record, Table

RANKS = (8, 16, 32, 64, 128)
POPULARITIES = ("uniform", "zipf", "shifting")
WINDOW_S = 300.0
REQUESTS_PER_S = 4.0
HOLD_S = 1.5
LOAD_S = 0.005
LOAD_BYTES_PER_S = 2e9
_ITEMSIZE = 2
_SHIFT_EVERY_S = 100.0
_WARM_UP = 0.2
"""Share of the requests that fill the memory and are not counted."""
_NOTE = (
    f"Ranks {', '.join(map(str, RANKS))} in equal shares, all linear modules. "
    f"{REQUESTS_PER_S:.0f} requests a second at random times, each holds its adapter for "
    f"{HOLD_S} s; a load takes {LOAD_S * 1e3:.0f} ms and then {LOAD_BYTES_PER_S / 1e9:.0f} GB/s."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An adapter is needed."""

    arrival_s: float
    adapter: Adapter


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of the requests."""

    num_requests: int = 0
    num_hits: int = 0
    loaded_bytes: int = 0
    wait_s: float = 0.0
    """Of all requests together, for room and for loads."""

    def hit_rate(self) -> float:
        """Requests whose adapter was there, or on its way."""
        return self.num_hits / self.num_requests

    def loaded_mib(self) -> float:
        """A request, on average."""
        return self.loaded_bytes / self.num_requests / MiB

    def wait_ms(self) -> float:
        """Of a request, on average."""
        return self.wait_s / self.num_requests * 1e3

    def add(self, other: "Outcome") -> None:
        """Count another run's requests as well."""
        self.num_requests += other.num_requests
        self.num_hits += other.num_hits
        self.loaded_bytes += other.loaded_bytes
        self.wait_s += other.wait_s


class Clairvoyant:
    """The adapter that is needed last, or never again, goes first."""

    window_s = WINDOW_S

    def __init__(self, requests: Sequence[Request]) -> None:
        self._uses: dict[Adapter, list[float]] = {}
        for request in reversed(requests):
            self._uses.setdefault(request.adapter, []).append(request.arrival_s)

    def used(self, usage: Usage) -> None:
        """One of its uses is over."""
        self._uses[usage.adapter].pop()

    def gone(self, adapter: Adapter) -> None:
        """Nothing to remember."""

    def forget(self, adapter: Adapter) -> None:
        """Nothing to remember."""

    def order(self, idle: Sequence[Usage]) -> list[Usage]:
        """By the time of next use, the last first."""

        def next_use_s(usage: Usage) -> float:
            uses = self._uses.get(usage.adapter)
            return uses[-1] if uses else float("inf")

        return sorted(idle, key=next_use_s, reverse=True)


def make_adapters(count: int, shape: ModelShape) -> list[Adapter]:
    """Adapters of all linear modules, the ranks in equal shares."""
    per_rank = sum(sum(dims) for dims in shape.module_dims.values()) * shape.num_layers * _ITEMSIZE
    return [
        Adapter(
            adapter_id=AdapterId(f"adapter-{index:03}"),
            generation="1",
            num_bytes=region_bytes(per_rank * rank),
            rank=rank,
        )
        for index, rank in zip(range(count), itertools.cycle(RANKS), strict=False)
    ]


def make_requests(
    adapters: Sequence[Adapter], popularity: str, count: int, seed: int
) -> list[Request]:
    """Arrivals at random (Poisson); which adapter is popular has nothing to do with its size.

    popularity: uniform; zipf, the n-th popular 1/n times as often as the first; shifting, the same
    where a tenth of the ranking moves from its end to its top every 100 s.
    """
    draw = np.random.default_rng(seed)
    arrivals = np.cumsum(draw.exponential(1 / REQUESTS_PER_S, count))
    places = np.arange(1, len(adapters) + 1)
    weights = np.ones(len(adapters)) if popularity == "uniform" else 1 / places
    chosen = draw.choice(len(adapters), size=count, p=weights / weights.sum())
    ranking = draw.permutation(len(adapters))
    if popularity == "shifting":
        steps = (arrivals // _SHIFT_EVERY_S).astype(int) * (len(adapters) // 10)
        chosen = (chosen - steps) % len(adapters)
    return [
        Request(arrival_s=float(arrival), adapter=adapters[ranking[place]])
        for arrival, place in zip(arrivals, chosen, strict=True)
    ]


@dataclass(slots=True)
class _Host:
    """A worker that only loads adapters and holds them."""

    memory: Memory
    clock_s: float = 0.0
    loader_free_s: float = 0.0
    ready_s: dict[Adapter, float] = field(default_factory=dict)
    ends: list[tuple[float, str, Adapter]] = field(default_factory=list)

    def serve(self, request: Request) -> Outcome:
        """Bring the request's adapter into memory, and hold it for a while."""
        adapters, adapter = self.memory.adapters, request.adapter
        self.clock_s = max(self.clock_s, request.arrival_s)
        while self.ends and self.ends[0][0] <= self.clock_s:
            self._end_one()
        adapters.used(adapter, self.clock_s)
        is_hit = adapters.residency(adapter) is Residency.RESIDENT
        if not is_hit:
            self._load(adapter)
        adapters.pin(adapter)
        begin_s = max(self.clock_s, self.ready_s[adapter])
        heapq.heappush(self.ends, (begin_s + HOLD_S, adapter.adapter_id, adapter))
        return Outcome(
            num_requests=1,
            num_hits=is_hit,
            loaded_bytes=0 if is_hit else adapter.num_bytes,
            wait_s=begin_s - request.arrival_s,
        )

    def _load(self, adapter: Adapter) -> None:
        while self.memory.claim(adapter, self.clock_s) is None:
            self.clock_s = max(self.clock_s, self.ends[0][0])
            self._end_one()
        begin_s = max(self.clock_s, self.loader_free_s)
        self.loader_free_s = begin_s + LOAD_S + adapter.num_bytes / LOAD_BYTES_PER_S
        self.ready_s[adapter] = self.loader_free_s
        self.memory.adapters.loaded(adapter)

    def _end_one(self) -> None:
        end_s, _, adapter = heapq.heappop(self.ends)
        self.memory.adapters.unpin(adapter, end_s)


def replay(policy: EvictionPolicy, budget_bytes: int, requests: Sequence[Request]) -> Outcome:
    """Serve the requests with so many bytes for adapters; the first ones only fill it."""
    memory = Memory(budget_bytes, 1, BlockPool(0), AdapterCache(policy))
    host = _Host(memory)
    counted = Outcome()
    for number, request in enumerate(requests):
        outcome = host.serve(request)
        if number >= _WARM_UP * len(requests):
            counted.add(outcome)
    memory.check_invariants()
    return counted


def _policies(requests: Sequence[Request]) -> dict[str, EvictionPolicy]:
    return {**eviction.by_name(WINDOW_S), "clairvoyant": Clairvoyant(requests)}


def compare(
    adapters: Sequence[Adapter], popularity: str, share: float, plan: Plan
) -> dict[str, Outcome]:
    """By policy: the same requests, and memory for a share of all adapters' bytes."""
    budget_bytes = int(share * sum(adapter.num_bytes for adapter in adapters))
    totals: dict[str, Outcome] = {}
    for seed in range(1 if plan.is_quick else 2):
        requests = make_requests(adapters, popularity, 1000 if plan.is_quick else 3000, seed)
        for name, policy in _policies(requests).items():
            totals.setdefault(name, Outcome()).add(replay(policy, budget_bytes, requests))
    return totals


def measure(plan: Plan) -> list[Table]:
    """Every policy under every load."""
    shape = model_shape.read(plan.model)
    found: dict[_Load, dict[str, Outcome]] = {}
    for count in (100,) if plan.is_quick else (100, 300):
        adapters = make_adapters(count, shape)
        for popularity in POPULARITIES:
            for share in (0.2, 0.4):
                progress(f"    {count} adapters, {popularity}, memory for {share:.0%}")
                load = _Load(count, popularity, share)
                found[load] = compare(adapters, popularity, share, plan)
    return [
        _table(found, "hits", "Requests that find their adapter loaded", ".1%", Outcome.hit_rate),
        _table(found, "loaded", "MiB loaded for each request", ".1f", Outcome.loaded_mib),
        _table(found, "waits", "Mean wait for memory and loads, ms", ".1f", Outcome.wait_ms),
    ]


@dataclass(frozen=True, slots=True)
class _Load:
    num_adapters: int
    popularity: str
    share: float


def _table(
    found: Mapping[_Load, Mapping[str, Outcome]],
    name: str,
    title: str,
    form: str,
    value: Callable[[Outcome], float],
) -> Table:
    """One row a load, one column a policy."""
    policies = list(next(iter(found.values())))
    rows: list[Record] = [
        {
            "adapters": load.num_adapters,
            "popularity": load.popularity,
            "share": load.share,
            **{policy: value(outcome) for policy, outcome in outcomes.items()},
        }
        for load, outcomes in found.items()
    ]
    return Table(
        name=f"policies-{name}",
        title=title,
        columns=(
            Column(key="adapters", title="adapters"),
            Column(key="popularity", title="popularity"),
            Column(key="share", title="memory for", form=".0%"),
            *(Column(key=policy, title=policy, form=form) for policy in policies),
        ),
        rows=tuple(rows),
        note=_NOTE if name == "hits" else "",
    )
