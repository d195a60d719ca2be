"""The same requests to the real worker and to the simulated one, each at its own time.

Both are alone behind their line: the real worker is sent every request when it comes, and the
simulated scheduler passes each on at once, so that what differs is the worker's model.
"""

import asyncio
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from anole_sim import workload
from anole_sim.metrics import Life, mean, quantile
from anole_sim.options import EngineOptions
from anole_sim.profile_file import Fitted
from anole_sim.simulate import Case, run
from anole_sim.systems import System
from anole_sim.workload import Ask, Workload
from anole_worker.core.step_budget import PASSING_ON_CPU
from bench import adapters
from bench.adapters import MIXED_RANKS, mixed_name
from bench.load_client import Job
from bench.rig import MAX_ROWS, TOKEN_BUDGET
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from bench.worker import Worker, serving

LOADS = {"low": 0.7, "moderate": 1.4}
"""Requests a second."""
_REQUESTS, _QUICK_REQUESTS = 60, 15
_NUM_ADAPTERS = 8
_INPUT, _OUTPUT = (16, 192), (8, 40)
_BASE_SHARE = 0.2
"""Of requests without an adapter."""
_UNCOUNTED = 0.1
"""Of the requests, the first: the worker warms up, and learns what steps cost."""
_LONGEST_S, _ALONE_SHARE = 0.45, 0.4
"""As the worker ships."""
_FIRST_TOKEN, _NUM_TOKENS = 100, 40_000

WORKER = System(
    name="worker",
    what="Anole's worker alone: every request is its own at once",
    engine=EngineOptions(is_chunked=True, is_blocking=False),
    eviction="gdsf",
    admission="fits",
    is_forwarding=True,
    pace="shared",
    longest_s=_LONGEST_S,
    alone_share=_ALONE_SHARE,
    passing=PASSING_ON_CPU,
    token_budget=TOKEN_BUDGET,
)


def settings(plan: Plan, memory_bytes: int) -> dict[str, Any]:
    """The real worker's."""
    return {
        "max_num_seqs": MAX_ROWS,
        "token_budget": TOKEN_BUDGET,
        "num_threads": 1,
        "step_threads": 1,
        "device": plan.device,
        "memory_bytes": memory_bytes,
        "longest_step_s": _LONGEST_S,
        "alone_share": _ALONE_SHARE,
        "eviction": "gdsf",
        "max_loads": WORKER.engine.max_loads,
    }


def measure(plan: Plan, fitted: Fitted) -> Table:
    """Both at every load."""
    rows: list[Record] = []
    for seed, (name, rate) in enumerate(LOADS.items()):
        progress(f"    {rate:g} requests a second, real and simulated")
        work = requests(_QUICK_REQUESTS if plan.is_quick else _REQUESTS, rate, seed)
        real = asyncio.run(_real(plan, work, fitted.profile.memory_bytes))
        rows += _compared(f"{name}, {rate:g}/s", real, simulated(fitted, work))
    return _table(rows)


def requests(count: int, rate: float, seed: int) -> Workload:
    """Poisson arrivals, lengths uniform, adapters uniform but for the base model's share."""
    draw = Random(f"replay {seed}")  # noqa: S311 - not a secret
    asks: list[Ask] = []
    now = 0.0
    for _ in range(count):
        now += draw.expovariate(rate)
        adapter = -1 if draw.random() < _BASE_SHARE else draw.randrange(_NUM_ADAPTERS)
        asks.append(Ask(now, draw.randint(*_INPUT), draw.randint(*_OUTPUT), adapter))
    ranks = [MIXED_RANKS[place % len(MIXED_RANKS)] for place in range(_NUM_ADAPTERS)]
    return Workload(name="replay", asks=asks, ranks=ranks, duration_s=now)


def simulated(fitted: Fitted, work: Workload) -> list[Life]:
    """The requests by the simulator."""
    case = Case(system=WORKER, plan=workload.Plan(), profile=fitted.profile, link=fitted.link)
    return run(case, work)[0].lives()


async def _real(plan: Plan, work: Workload, memory_bytes: int) -> list[Life]:
    folder = adapters.folder_of(plan)
    async with serving(plan, folder, **settings(plan, memory_bytes)) as worker:
        begin_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(_ask(worker, ask, place, begin_s), name=f"request {place}")
                for place, ask in enumerate(work.asks)
            ]
        return [one.result() for one in asked]


async def _ask(worker: Worker, ask: Ask, place: int, begin_s: float) -> Life:
    """One request at its time; a client that is late does not make it later."""
    life = Life(arrival_s=ask.arrival_s, isolated_s=0.0, num_tokens=ask.output_tokens)
    job = Job(
        prompt=prompt(ask.input_tokens, 100_000 + place),
        adapter=None if ask.adapter < 0 else mixed_name(ask.adapter),
        max_tokens=ask.output_tokens,
        num_streams=1,
    )
    await asyncio.sleep(begin_s + ask.arrival_s - time.perf_counter())
    async for num_tokens in worker.stream(job):
        now_s = time.perf_counter() - begin_s
        if life.num_made == 0:
            life.first_s = now_s
        life.num_made += num_tokens
        life.end_s = now_s
    return life


def prompt(num_tokens: int, seed: int) -> tuple[int, ...]:
    """Tokens of which no other seed's have a block in common."""
    draw = Random(f"prompt {seed}")  # noqa: S311 - not a secret
    return tuple(draw.randrange(_FIRST_TOKEN, _NUM_TOKENS) for _ in range(num_tokens))


def figures(lives: Sequence[Life]) -> dict[str, float]:
    """What users feel, of all but the first requests."""
    counted = lives[int(_UNCOUNTED * len(lives)) :]
    ttfts = sorted(life.ttft_s for life in counted)
    tpots = sorted(life.tpot_s for life in counted)
    return {
        "TTFT P50": quantile(ttfts, 0.5),
        "TTFT P99": quantile(ttfts, 0.99),
        "TPOT P50": quantile(tpots, 0.5),
        "E2E mean": mean([life.e2e_s for life in counted]),
    }


def _compared(name: str, real: Sequence[Life], model: Sequence[Life]) -> list[Record]:
    told, found = figures(real), figures(model)
    return [
        {
            "load": name,
            "what": what,
            "real_ms": seconds * 1e3,
            "model_ms": found[what] * 1e3,
            "error": found[what] / seconds - 1,
        }
        for what, seconds in told.items()
    ]


def _table(rows: Sequence[Record]) -> Table:
    return Table(
        name="fit-replay",
        title="The same requests to the real worker and to the simulated one",
        columns=(
            Column(key="load", title="load"),
            Column(key="what", title="figure"),
            Column(key="real_ms", title="real ms", form=".0f"),
            Column(key="model_ms", title="simulated ms", form=".0f"),
            Column(key="error", title="error", form="+.0%"),
        ),
        rows=tuple(rows),
        note=f"{_REQUESTS} requests, Poisson; prompts of {_INPUT[0]} to {_INPUT[1]} tokens, "
        f"answers of {_OUTPUT[0]} to {_OUTPUT[1]}; {_NUM_ADAPTERS} adapters of ranks 8 to 128, a "
        "fifth without one. The P99 of so few is the longest. The first tenth is not counted.",
    )
