"""Prompts: with adapters against without, and those that share their beginning with another."""

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Step
from anole_worker.runtime.crew import default_threads
from bench import adapters, limits
from bench.hugging_face import PeftBatch
from bench.interleaving import Call, in_turns
from bench.load_client import Job
from bench.rig import TOKEN_BUDGET, Rig, clock, dtypes, linear_weights, name_of, preferred, rigged
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from bench.worker import Worker, serving

CASES = ((1, 128), (8, 64), (1, 1024))
PROMPT, SHARED = 1024, 896
_FIRST_TOKEN, _NUM_TOKENS = 100, 40_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    """Rows of one length, the same with and without adapters."""

    num_rows: int
    num_tokens: int

    @property
    def name(self) -> str:
        return f"{self.num_rows} x {self.num_tokens}"


def measure(plan: Plan) -> list[Table]:
    """Prefill by step, and time to first token with a known prefix."""
    rows: list[Record] = []
    for dtype in dtypes(plan):
        with rigged(plan, dtype) as rig:
            rows += _all_cases(plan, rig)
    shared = [] if plan.is_on_gpu else [_shared_table(list(_shared(plan)))]
    return [_prefill_table(rows), *shared, _prefix_table(asyncio.run(_prefixes(plan)))]


def _all_cases(plan: Plan, rig: Rig) -> Iterator[Record]:
    files = adapters.read_mixed(plan)
    loaded = rig.load_distinct(files, max(rows for rows, _ in CASES))
    hugging_face = PeftBatch(plan.model, rig.shape, rig.dtype, plan.device)
    for num_rows, num_tokens in CASES[:2] if plan.is_quick else CASES:
        case = _Prompts(num_rows=num_rows, num_tokens=num_tokens)
        progress(f"    {name_of(rig.dtype)}, {case.name}")
        numbers = sum(files[row % len(files)].num_weights for row in range(num_rows))
        yield {
            **_one_case(plan, rig, case, loaded[:num_rows], hugging_face),
            "floor": 1 + 2 * numbers * num_tokens / _operations(rig, case),
        }


def _one_case(
    plan: Plan, rig: Rig, case: _Prompts, loaded: Sequence[Adapter], hugging_face: PeftBatch
) -> Record:
    calls = {
        "base": _run(rig, rig.prompts([None] * case.num_rows, case.num_tokens)),
        "adapters": _run(rig, rig.prompts(loaded, case.num_tokens)),
        "transformers": hugging_face.prefill(case.num_rows, case.num_tokens),
    }
    # A round of these takes as long as many decode steps.
    times = in_turns(calls, max(3, plan.rounds // 5), clock=clock(plan))
    base_s = times["base"].median_s
    operations = _operations(rig, case)
    tokens = case.num_rows * case.num_tokens
    return {
        "dtype": name_of(rig.dtype),
        "prompts": case.name,
        "base_ms": base_s * 1e3,
        "tokens_per_s": tokens / base_s,
        "floor_ms": operations / limits.flops_per_s(rig.dtype, rig.target) * 1e3,
        "efficiency": operations / base_s / limits.flops_per_s(rig.dtype, rig.target),
        "ms": times["adapters"].median_s * 1e3,
        "ratio": times["adapters"].ratio_to(times["base"]),
        "transformers_ms": times["transformers"].median_s * 1e3,
        "faster": times["transformers"].ratio_to(times["base"]),
    }


def _shared(plan: Plan) -> Iterator[Record]:
    """Prompts by one thread and by several, each with its own rig; wall time."""
    num_threads = default_threads(torch_threads=1)
    progress(f"    shared by {num_threads} threads")
    dtype = preferred(plan)
    with rigged(plan, dtype) as one, rigged(plan, dtype, num_threads) as several:
        loaded = {
            rig: rig.load_distinct(adapters.read_mixed(plan), max(rows for rows, _ in CASES))
            for rig in (one, several)
        }
        for num_rows, num_tokens in CASES[:2] if plan.is_quick else CASES:
            calls = {
                str(index): _run(rig, rig.prompts(own[:num_rows], num_tokens))
                for index, (rig, own) in enumerate(loaded.items())
            }
            times = in_turns(calls, max(3, plan.rounds // 5), clock=time.perf_counter)
            yield {
                "dtype": name_of(dtype),
                "prompts": _Prompts(num_rows=num_rows, num_tokens=num_tokens).name,
                "one_ms": times["0"].median_s * 1e3,
                "several_ms": times["1"].median_s * 1e3,
                "threads": num_threads,
                "faster": times["0"].ratio_to(times["1"]),
            }


def _shared_table(rows: list[Record]) -> Table:
    return Table(
        name="shared",
        title="The same prompts with adapters, shared by threads, wall time",
        columns=(
            Column(key="dtype", title="dtype"),
            Column(key="prompts", title="prompts"),
            Column(key="one_ms", title="one thread ms", form=".0f"),
            Column(key="several_ms", title="several ms", form=".0f"),
            Column(key="threads", title="threads"),
            Column(key="faster", title="faster", form=".2f", unit="x"),
        ),
        rows=tuple(rows),
    )


def _run(rig: Rig, steps: Sequence[Step]) -> Call:
    def run() -> None:
        for step in steps:
            rig.device.run(step)

    return run


def _operations(rig: Rig, case: _Prompts) -> float:
    """Multiplications and additions of all matrix products, attention's and the head's too."""
    shape = rig.shape
    linear = 2 * linear_weights(shape) * case.num_tokens
    pairs = case.num_tokens * (case.num_tokens + 1) / 2
    attention = 4 * pairs * shape.num_heads * shape.head_dim * shape.num_layers
    head = 2 * shape.vocab_size * shape.hidden_size
    return case.num_rows * (linear + attention + head)


async def _prefixes(plan: Plan) -> list[Record]:
    """Times to first token beside a running stream: known beginning, and none."""
    progress(f"    {SHARED} of {PROMPT} tokens shared with a running one")
    prompts = _distinct_prompts()
    known = next(prompts)
    found: dict[str, list[float]] = {"shared": [], "distinct": []}
    async with serving(
        plan, None, token_budget=TOKEN_BUDGET, num_threads=1, device=plan.device
    ) as worker:
        running = worker.stream(_job(known, max_tokens=4000))
        async with asyncio.TaskGroup() as tasks:
            drain = tasks.create_task(_drain(running), name="running")
            await _first(worker, next(prompts))
            for _ in range(max(3, plan.rounds // 3)):
                other = next(prompts)
                found["distinct"].append(await _first(worker, other))
                tail = next(prompts)[SHARED:]
                found["shared"].append(await _first(worker, (*known[:SHARED], *tail)))
            drain.cancel()
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    ratio = medians["shared"] / medians["distinct"]
    return [
        {
            "distinct_ms": medians["distinct"] * 1e3,
            "shared_ms": medians["shared"] * 1e3,
            "ratio": ratio,
            "floor": 1 - SHARED / PROMPT,
        }
    ]


async def _first(worker: Worker, prompt: tuple[int, ...]) -> float:
    """Seconds until the prompt's only token."""
    begin = time.perf_counter()
    async with aclosing(worker.stream(_job(prompt, max_tokens=1))) as stream:
        async for _ in stream:
            pass
    return time.perf_counter() - begin


async def _drain(stream: AsyncIterator[int]) -> None:
    async for _ in stream:
        pass


def _job(prompt: tuple[int, ...], max_tokens: int) -> Job:
    return Job(prompt=prompt, adapter=None, max_tokens=max_tokens, num_streams=1)


def _distinct_prompts() -> Iterator[tuple[int, ...]]:
    """Prompts of which no two have a block in common."""
    for number in itertools.count():
        begin = number * PROMPT
        yield tuple(_FIRST_TOKEN + (begin + index) % _NUM_TOKENS for index in range(PROMPT))


def _prefill_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="prefill",
        title=f"Prompts in steps of at most {TOKEN_BUDGET} tokens, rows x tokens",
        columns=(
            Column(key="dtype", title="dtype"),
            Column(key="prompts", title="prompts"),
            Column(key="base_ms", title="base ms", form=".0f"),
            Column(key="tokens_per_s", title="tokens/s", form=".0f"),
            Column(key="floor_ms", title="floor ms", form=".0f"),
            Column(key="efficiency", title="of peak FLOP/s", form=".0%"),
            Column(key="ms", title="with adapters ms", form=".0f"),
            Column(key="ratio", title="ratio", form=".2f"),
            Column(key="floor", title="of operations", form=".2f"),
            Column(key="transformers_ms", title="transformers' base ms", form=".0f"),
            Column(key="faster", title="faster", form=".2f", unit="x"),
        ),
        rows=tuple(rows),
        note=(
            "Each row has its own adapter of all linear modules, ranks 8 to 128 by turns (one row: "
            "rank 8). Floor: the operations of all matrix products at the best FLOP/s that was "
            "measured for a matrix product of that type. Of operations: with adapters to without."
        ),
    )


def _prefix_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="prefix",
        title=f"Time to first token of a prompt of {PROMPT} tokens beside one running stream",
        columns=(
            Column(key="distinct_ms", title="nothing known ms", form=".0f"),
            Column(key="shared_ms", title=f"{SHARED} tokens known ms", form=".0f"),
            Column(key="ratio", title="ratio", form=".2f"),
            Column(key="floor", title="of tokens", form=".2f"),
        ),
        rows=tuple(rows),
        note="Through the worker's own loop, wall time, in the type of the machine's choice.",
    )
