"""How long a running stream stands still while adapters load, through the worker's own loop."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from anole_shared.units import GiB, MiB
from bench import adapters
from bench.adapters import mixed_name
from bench.load_client import Job, quantile
from bench.peers.load_stall import Running, running
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from bench.worker import Worker, serving

NUM_LOADS, _QUICK_LOADS = 50, 15
_ROOMY_BYTES, _TIGHT_BYTES = 4 * GiB, 512 * MiB
_PROMPT = tuple(range(100, 228))
_SHORT_PROMPT = tuple(range(300, 316))
_ANSWER_TOKENS = 1000
_PAUSE_S = 0.3
_AIM = 2.0

Act = Callable[[str], Awaitable[object]]
"""Something to do with an adapter."""


def measure(plan: Plan) -> list[Table]:
    """One stream, and beside it what could stall it."""
    return [_table(asyncio.run(_measure(plan)))]


async def _measure(plan: Plan) -> list[Record]:
    """Loads have room for all; of the adapters that requests bring, most evict another."""
    num_loads = _QUICK_LOADS if plan.is_quick else NUM_LOADS
    names = [mixed_name(index) for index in range(num_loads + 1)]
    folder = adapters.folder_of(plan)
    rows: list[Record] = []
    for memory_bytes, cases in ((_ROOMY_BYTES, _loads), (_TIGHT_BYTES, _requests)):
        async with (
            serving(plan, folder, memory_bytes=memory_bytes, num_threads=1) as worker,
            running(worker.stream, _job(names[0], _PROMPT, _ANSWER_TOKENS)) as stream,
        ):
            for what, do in cases(worker, names[0]).items():
                progress(f"    {num_loads} times {what}")
                rows.append(await _beside(stream, what, do, names[1:]))
    # The first row's: with nothing beside it.
    undisturbed_ms = float(str(rows[0]["median_ms"]))
    return [
        {**row, "to_undisturbed": float(str(row["longest_ms"])) / undisturbed_ms} for row in rows
    ]


def _loads(worker: Worker, _: str) -> dict[str, Act]:
    return {"nothing": lambda _: asyncio.sleep(_PAUSE_S), "a load": worker.load}


def _requests(worker: Worker, own: str) -> dict[str, Act]:
    return {
        "a request, its adapter is loaded": lambda _: _ask(worker, own),
        "a request, its adapter is to be loaded": lambda name: _ask(worker, name),
    }


async def _beside(stream: Running, what: str, do: Act, names: Sequence[str]) -> Record:
    """The stream's gaps while the same is done with one adapter after the other."""
    begin = time.perf_counter()
    for name in names:
        await do(name)
    seconds = time.perf_counter() - begin
    gaps = stream.gaps_s(begin)
    median = quantile(gaps, 0.5)
    return {
        "what": what,
        "times": len(names),
        "each_ms": seconds / len(names) * 1e3,
        "tokens": len(gaps),
        "median_ms": median * 1e3,
        "p99_ms": quantile(gaps, 0.99) * 1e3,
        "longest_ms": max(gaps) * 1e3,
        "ratio": max(gaps) / median,
    }


async def _ask(worker: Worker, adapter: str) -> None:
    async for _ in worker.stream(_job(adapter, _SHORT_PROMPT, 2)):
        pass


def _job(adapter: str, prompt: tuple[int, ...], max_tokens: int) -> Job:
    return Job(prompt=prompt, adapter=adapter, max_tokens=max_tokens, num_streams=1)


def _table(rows: Sequence[Record]) -> Table:
    return Table(
        name="stalls",
        title="Gaps between the tokens of one running stream, by what is done beside it",
        columns=(
            Column(key="what", title="beside it, one after the other"),
            Column(key="times", title="times"),
            Column(key="each_ms", title="ms each", form=".0f"),
            Column(key="tokens", title="gaps"),
            Column(key="median_ms", title="median ms", form=".1f"),
            Column(key="p99_ms", title="p99 ms", form=".1f"),
            Column(key="longest_ms", title="longest ms", form=".1f"),
            Column(key="ratio", title="longest / median", form=".2f"),
            Column(key="to_undisturbed", title="/ median of nothing", form=".2f"),
        ),
        rows=tuple(rows),
        note=(
            "Adapters of all linear modules, ranks 8 to 128. Loads alone have room for all, "
            f"requests share {_TIGHT_BYTES // MiB} MiB, so that most of the adapters that they "
            f"bring evict another. Aim for loads: at most {_AIM:.0f} times the median. A request "
            "also brings its prompt and its tokens into the stream's steps, whatever is loaded."
        ),
    )
