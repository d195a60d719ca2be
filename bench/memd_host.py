"""A host's adapter memory under shifting demand, and what giving some back costs."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson

from anole_shared.units import MiB
from bench import adapters
from bench.adapters import MIXED_RANKS, Kind
from bench.heap_release import RECLAIMED, released
from bench.host_cache import KINDS, Trace
from bench.memd import leasing
from bench.section import Plan, progress
from bench.table import Column, Record, Table

NUM_ADAPTERS = 300
_PHASES = (
    # share of the adapters that are asked for, Zipf's exponent, requests a second
    (1.0, 0.6, 60.0),
    (0.05, 1.2, 60.0),
    (0.5, 0.6, 60.0),
    (0.03, 1.2, 10.0),
)
_PHASE_S, _QUICK_PHASE_S = 15.0, 5.0
_IDLE_S, _HOLD_S = 4.0, 3.0
_SEED = 7


def measure(plan: Plan) -> list[Table]:
    """The shifting demand, then releases by size."""
    progress("    shifting demand, each cache in turn")
    runs = demand(plan)
    progress("    releasing")
    rounds = 2 if plan.is_quick else min(plan.rounds, 5)
    sizes = RECLAIMED[:1] if plan.is_quick else RECLAIMED
    rows = [row for num_bytes in sizes for row in released(num_bytes, rounds)]
    return [_over_time(runs), _summary(runs), _release_table(rows)]


def demand(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """What each kind of cache holds over time, under the same requests."""
    trace = trace_of(plan)
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        # Pages of the files are in the page cache for all but the very first.
        with leasing(hold_s=_HOLD_S, floor_bytes=0, revoke_s=1.0) as socket:
            given = orjson.dumps(asdict(trace) | {"socket": str(socket)})
            done = subprocess.run(  # noqa: S603
                [sys.executable, "-m", "bench.host_cache", kind],
                input=given,
                stdout=subprocess.PIPE,
                check=True,
            )
        found[kind] = orjson.loads(done.stdout)
        progress(f"    {kind}: {found[kind][-1]['loads']} loads")
    return found


def trace_of(plan: Plan) -> Trace:
    """Four phases; in each other adapters are popular, by Zipf's law."""
    folder = adapters.folder_of(plan)
    kinds = [Kind("attention", rank) for rank in MIXED_RANKS]
    weights = [str(folder / kind.name / "adapter_model.safetensors") for kind in kinds]
    phase_s = _QUICK_PHASE_S if plan.is_quick else _PHASE_S
    draw = np.random.default_rng(_SEED)
    requests: list[tuple[float, int]] = []
    for number, (share, exponent, rate) in enumerate(_PHASES):
        names = draw.permutation(NUM_ADAPTERS)[: max(1, round(share * NUM_ADAPTERS))]
        chances = np.arange(1, len(names) + 1, dtype=float) ** -exponent
        count = round(rate * phase_s)
        times = np.sort(draw.uniform(number * phase_s, (number + 1) * phase_s, count))
        which = draw.choice(names, size=count, p=chances / chances.sum())
        requests += [(float(at), int(index)) for at, index in zip(times, which, strict=True)]
    return Trace(
        socket="",
        paths=[weights[index % len(weights)] for index in range(NUM_ADAPTERS)],
        requests=requests,
        idle_s=_IDLE_S,
        hold_s=_HOLD_S,
        seconds=phase_s * len(_PHASES),
    )


def _over_time(runs: dict[str, list[dict[str, Any]]]) -> Table:
    """One row a second, for the plot."""
    seconds = range(math.ceil(min(run[-1]["seconds"] for run in runs.values())))
    rows: list[Record] = []
    for second in seconds:
        row: dict[str, float] = {"seconds": float(second)}
        for kind, run in runs.items():
            sample = min(run, key=lambda one: abs(one["seconds"] - second))
            row[kind] = sample["resident_bytes"] / MiB
            if kind == "regions":
                row["demand"] = sample["demand_bytes"] / MiB
        rows.append(row)
    keys = ("seconds", "demand", *KINDS)
    return Table(
        name="memd-demand",
        title="Resident memory of a host's adapters, MiB, second by second",
        columns=tuple(Column(key=key, title=key, form=".0f") for key in keys),
        rows=tuple(rows),
    )


def _summary(runs: dict[str, list[dict[str, Any]]]) -> Table:
    rows: list[Record] = []
    for kind, run in runs.items():
        resident = [sample["resident_bytes"] for sample in run]
        needed = sum(sample["demand_bytes"] for sample in run)
        rows.append(
            {
                "cache": kind,
                "peak": max(resident) / MiB,
                "end": resident[-1] / MiB,
                "mean": sum(resident) / len(resident) / MiB,
                "over": sum(resident) / needed,
                "loads": run[-1]["loads"],
            }
        )
    return Table(
        name="memd-host",
        title=f"{NUM_ADAPTERS} adapters, four phases of demand",
        columns=(
            Column(key="cache", title="cache"),
            Column(key="peak", title="peak MiB", form=".0f"),
            Column(key="end", title="at the end MiB", form=".0f"),
            Column(key="mean", title="mean MiB", form=".0f"),
            Column(key="over", title="mean / demand", form=".2f"),
            Column(key="loads", title="loads", form="d"),
        ),
        rows=tuple(rows),
        note="Demand: bytes of the adapters that were used in the last seconds. Regions: leased "
        "from memd, which asks for what is idle. Heap: one malloc a tensor, kept. Heap, freed: the "
        "same, with memd's controller telling when to free() how much.",
    )


def _release_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="memd-release",
        title="Giving back half of what eight owners filled in turns",
        columns=(
            Column(key="way", title="memory"),
            Column(key="asked", title="freed MiB", form=".0f"),
            Column(key="ms", title="ms", form=".1f"),
            Column(key="returned", title="returned to the system", form=".0%"),
        ),
        rows=tuple(rows),
        note="Medians. A heap hands back what lies at its end, and what malloc_trim() finds in "
        "whole pages; a region goes as a whole. How fast depends on the size of its pages.",
    )
