"""This machine's own worker as a profile for `anole sim`, and how far that is from the worker.

Steps are timed on the worker's device and through the worker's own loop, loads through its loop; a
third of the points is not fitted, and shows the error. Then the same requests are sent to the real
worker and to the simulator with the fitted profile.
"""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial

from anole_shared.units import GiB
from anole_sim import profile_file
from anole_sim.profile_file import Fitted
from anole_worker.core.adapter import Adapter
from bench import adapters, machine, replay
from bench.adapters import NUM_MIXED, Kind, mixed_name
from bench.fitting import (
    Errors,
    Limits,
    Step,
    StepFit,
    Timed,
    TimedLoad,
    errors_of,
    fit_link,
    split,
)
from bench.interleaving import Call, in_turns
from bench.load_client import Job
from bench.rig import MAX_ROWS, Rig, clock, kv_bytes, name_of, preferred, rigged
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from bench.worker import Worker, serving

_ROWS, _QUICK_ROWS = (1, 2, 4, 8, 12, 16, 24, 32), (1, 4, 16)
_CONTEXTS = (64, 128, 256)
_MOST_ADAPTERS = 12
"""Rows with adapters of their own: each has its weights in memory, of any rank up to 128."""
_PROMPTS, _QUICK_PROMPTS = (8, 16, 32, 48, 64, 96, 128, 192, 256), (16, 32, 64, 256)
_PROMPT_RANKS = (None, 8, 32, 128)
_LONG_PROMPT, _LONG_RANKS = 768, (None, 32)
_MIXED_ROWS, _QUICK_MIXED_ROWS = (2, 4, 8, 16, 24), (4, 16)
_MIXED_PROMPTS, _MIXED_CONTEXT = (16, 64, 160), 128
_LOOP_PROMPT, _LOOP_TOKENS = 32, 24
_LOADS, _QUICK_LOADS = 30, 10
_MEMORY_BYTES = 2 * GiB

Steps = dict[str, tuple[Step, Call]]


def measure(plan: Plan) -> list[Table]:
    """Fit, hold against what was held out, replay."""
    with rigged(plan, preferred(plan)) as rig:
        timed = list(_on_device(plan, rig))
        limits = _limits(plan, rig)
    looped, loads = asyncio.run(_in_loop(plan, limits.rank_bytes))
    timed += looped
    known, held = split(timed)
    known_loads, held_loads = split(loads)
    fit, link = StepFit(known), fit_link(known_loads)
    name = machine.name_of(machine.describe())
    source = f"{plan.model.name} in {name_of(preferred(plan))}, measured by anole bench fit"
    fitted = Fitted(profile=fit.profile(name, source, limits), link=link)
    plan.kept["fitted"] = profile_file.to_json(fitted)
    plan.kept["points"] = [asdict(one) for one in timed]
    plan.kept["loads"] = [asdict(one) for one in loads]
    rows = _errors(fit, known, held)
    for which, points in (("fitted", known_loads), ("held out", held_loads)):
        seconds = [link.seconds(one.num_bytes) for one in points]
        rows.append(_row("load", which, errors_of(seconds, [one.seconds for one in points])))
    return [_constants_table(fitted), _errors_table(rows), replay.measure(plan, fitted)]


def _errors(fit: StepFit, known: Sequence[Timed], held: Sequence[Timed]) -> list[Record]:
    rows = []
    for kind in dict.fromkeys(one.kind for one in known):
        for which, points in (("fitted", known), ("held out", held)):
            if some := [one for one in points if one.kind == kind]:
                seconds = [fit.seconds(one.step) for one in some]
                rows.append(_row(kind, which, errors_of(seconds, [one.seconds for one in some])))
    return rows


def _row(kind: str, which: str, errors: Errors) -> Record:
    return {"what": kind, "which": which, **asdict(errors)}


def _limits(plan: Plan, rig: Rig) -> Limits:
    file = adapters.read(plan, Kind("all", 64))
    return Limits(
        kv_bytes=kv_bytes(rig.shape, rig.dtype),
        rank_bytes=rig.device.adapter_bytes(file) // file.rank,
        memory_bytes=_MEMORY_BYTES,
        max_num_seqs=MAX_ROWS,
    )


# On the device alone.


def _on_device(plan: Plan, rig: Rig) -> Iterator[Timed]:
    progress("    decode steps and prompts on the device")
    rig.fill(MAX_ROWS, max(_CONTEXTS))
    loaded = rig.load_distinct(adapters.read_mixed(plan), _MOST_ADAPTERS)
    yield from _timed(plan, "decode", dict(_decodes(plan, rig, loaded)))
    by_rank = {one.rank: one for one in loaded}
    yield from _timed(plan, "prompt", dict(_prompts(plan, rig, by_rank)))
    yield from _timed(plan, "both", dict(_both(plan, rig, loaded)))


def _timed(plan: Plan, kind: str, steps: Steps) -> Iterator[Timed]:
    calls = {name: call for name, (_, call) in steps.items()}
    times = in_turns(calls, max(3, plan.rounds // 3), clock=clock(plan))
    for name, (step, _) in steps.items():
        yield Timed(kind, step, times[name].median_s)


def _decodes(
    plan: Plan, rig: Rig, loaded: Sequence[Adapter]
) -> Iterator[tuple[str, tuple[Step, Call]]]:
    for rows in _QUICK_ROWS if plan.is_quick else _ROWS:
        for context in _CONTEXTS:
            for with_adapters in sorted(
                {0, min(rows, _MOST_ADAPTERS) // 2, min(rows, _MOST_ADAPTERS)}
            ):
                # From another one each time: their ranks differ.
                own = [loaded[(place + rows) % len(loaded)] for place in range(with_adapters)]
                step = Step(rows=rows, context=rows * context, ranks=sum(one.rank for one in own))
                made = rig.decode([*own, *[None] * (rows - with_adapters)], context)
                yield f"{rows} {context} {with_adapters}", (step, partial(rig.device.run, made))


def _prompts(
    plan: Plan, rig: Rig, by_rank: Mapping[int, Adapter]
) -> Iterator[tuple[str, tuple[Step, Call]]]:
    lengths = _QUICK_PROMPTS if plan.is_quick else _PROMPTS
    for length in (*lengths, _LONG_PROMPT):
        for rank in _LONG_RANKS if length == _LONG_PROMPT else _PROMPT_RANKS:
            adapter = by_rank[rank] if rank else None
            for made in rig.prompts([adapter], length):
                (row,) = made.rows
                size, end = len(row.token_ids), row.start + len(row.token_ids)
                step = Step(
                    prompts=1,
                    prompt_tokens=size,
                    squares=end * end - row.start * row.start,
                    lora_tokens=size if rank else 0,
                    token_ranks=size * (rank or 0),
                )
                yield f"{row.start} {end} {rank}", (step, partial(rig.device.run, made))


def _both(
    plan: Plan, rig: Rig, loaded: Sequence[Adapter]
) -> Iterator[tuple[str, tuple[Step, Call]]]:
    """Decodes, of which half have adapters, and a prompt in one step."""
    for rows in _QUICK_MIXED_ROWS if plan.is_quick else _MIXED_ROWS:
        for size in _MIXED_PROMPTS:
            for adapter in (None, loaded[(rows + size) % len(loaded)]):
                own = loaded[: rows // 2]
                rank = adapter.rank if adapter else 0
                step = Step(
                    rows=rows,
                    context=rows * _MIXED_CONTEXT,
                    ranks=sum(one.rank for one in own),
                    prompts=1,
                    prompt_tokens=size,
                    squares=size * size,
                    lora_tokens=size if rank else 0,
                    token_ranks=size * rank,
                )
                decodes = [*own, *[None] * (rows - len(own))]
                made = rig.mixed(decodes, _MIXED_CONTEXT, adapter, size)
                yield f"{rows} {size} {rank}", (step, partial(rig.device.run, made))


# Through the worker's loop.


async def _in_loop(plan: Plan, rank_bytes: int) -> tuple[list[Timed], list[TimedLoad]]:
    progress("    decode steps and loads through the worker's loop")
    async with serving(
        plan, adapters.folder_of(plan), **replay.settings(plan, _MEMORY_BYTES)
    ) as worker:
        steps = [
            await _loop_step(worker, rows, seed)
            for seed, rows in enumerate((_QUICK_ROWS if plan.is_quick else _ROWS) * 2)
        ]
        return steps, [one async for one in _loads(plan, worker, rank_bytes)]


async def _loop_step(worker: Worker, rows: int, seed: int) -> Timed:
    """The median gap while so many streams run."""
    jobs = [
        Job(
            prompt=replay.prompt(_LOOP_PROMPT, 1000 * seed + row),
            adapter=None,
            max_tokens=_LOOP_TOKENS,
            num_streams=rows,
        )
        for row in range(rows)
    ]
    gaps: list[float] = []
    async with asyncio.TaskGroup() as tasks:
        for job in jobs:
            tasks.create_task(_gaps(worker, job, gaps), name="stream")
    context = rows * (_LOOP_PROMPT + _LOOP_TOKENS // 2)
    return Timed("loop", Step(rows=rows, context=context, is_in_loop=True), statistics.median(gaps))


async def _gaps(worker: Worker, job: Job, gaps: list[float]) -> None:
    last_s = None
    async with aclosing(worker.stream(job)) as stream:
        async for _ in stream:
            now = time.perf_counter()
            if last_s is not None:
                gaps.append(now - last_s)
            last_s = now


async def _loads(plan: Plan, worker: Worker, rank_bytes: int) -> AsyncIterator[TimedLoad]:
    for index in range(min(NUM_MIXED, _QUICK_LOADS if plan.is_quick else _LOADS)):
        rank = adapters.MIXED_RANKS[index % len(adapters.MIXED_RANKS)]
        seconds = await worker.load(mixed_name(index))
        yield TimedLoad(rank * rank_bytes, seconds)


# What is shown.


def _constants_table(fitted: Fitted) -> Table:
    profile, link = fitted.profile, fitted.link
    linear = {f"linear layers, {tokens} tokens": (s * 1e3, "ms") for tokens, s in profile.linear}
    rows = linear | {
        "host, a step": (profile.host_s * 1e3, "ms"),
        "a row": (profile.row_s * 1e3, "ms"),
        "context, 1,000 tokens": (profile.context_s * 1e6, "ms"),
        "prefill attention, 256 tokens": (profile.attention_s * 256**2 * 1e3, "ms"),
        "adapters, a step": (profile.lora_step_s * 1e3, "ms"),
        "decode row, rank 64": (profile.lora_rank_s * 64 * 1e3, "ms"),
        "prompt with an adapter, 256 tokens": (profile.lora_token_s * 256 * 1e3, "ms"),
        "the same, by its rank: 64": (profile.lora_token_rank_s * 64 * 256 * 1e3, "ms"),
        "a load, whatever its size": (link.base_s * 1e3, "ms"),
        "a load, bytes a second": (link.bytes_per_s / 1e9, "GB/s"),
    }
    return Table(
        name="fit-constants",
        title=f"{profile.name}: {profile.source}",
        columns=(
            Column(key="what", title="constant"),
            Column(key="value", title="fitted", form=".3g"),
            Column(key="unit", title="unit"),
        ),
        rows=tuple(
            {"what": what, "value": value, "unit": unit} for what, (value, unit) in rows.items()
        ),
        note="0: none that could be told from the others.",
    )


def _errors_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="fit-errors",
        title="How far the fit is from single steps and loads",
        columns=(
            Column(key="what", title="what"),
            Column(key="which", title="points"),
            Column(key="points", title="number"),
            Column(key="median", title="median error", form=".1%"),
            Column(key="p90", title="P90", form=".1%"),
            Column(key="mean", title="mean, with its sign", form="+.1%"),
        ),
        rows=tuple(rows),
        note="decode, prompt, both together: a step on the device alone, CPU time. loop: a decode "
        "step of the worker, load: an adapter into the worker, wall time through its loop.",
    )
