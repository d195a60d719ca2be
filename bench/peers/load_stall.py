"""How long a running stream stands still while other adapters are loaded.

    python -m bench.peers.load_stall --peers anole,vllm --out stall.json

One stream runs, with an adapter that is loaded. Beside it adapters that are not loaded are asked
for, one after the other: a request for 2 tokens each, which for vLLM comes after the call that
makes the adapter known. The figure is the longest gap between two tokens of the stream. What a
server without adapters to load would do is measured as well, with the same requests to the
adapter that is there: the requests cost something of themselves.

Anole is given memory for a few adapters only, so that each load of a new one is also an eviction.
PEFT cannot load while a batch runs, nor llama.cpp's server at all; they have no row.
"""

import argparse
import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp

from bench.load_client import Job, Sample, Stream, client_session, quantile
from bench.peers import anole, report, vllm_cpu
from bench.peers.options import add_flags, setup_of
from bench.peers.peer import NotInstalled, Peer, Setup
from bench.peers.process import ServerFault
from bench.peers.turns import Bench, Lengths, Level, progress

RANKS = (8, 16, 32, 64)
KNOWN = 8
"""Adapters that are loaded before."""
SETTLE_TOKENS = 16
"""Of the stream, before anything else is asked."""
ANOLE_MEMORY_BYTES = 512 * 2**20
_PROMPT_TOKENS = 16
_prompt_numbers = itertools.count(1000)


class Running:
    """A stream that goes on until the context is left."""

    def __init__(self) -> None:
        self.arrivals_s: list[float] = []
        self._is_settled = asyncio.Event()

    async def settled(self) -> None:
        """Return when it has run for a while."""
        await self._is_settled.wait()

    async def run(self, stream: Stream, job: Job) -> None:
        while True:
            async for _ in stream(job):
                self.arrivals_s.append(time.perf_counter())
                if len(self.arrivals_s) == SETTLE_TOKENS:
                    self._is_settled.set()
            # A new answer begins with a prompt: what lies between is no gap.
            self.arrivals_s.append(float("nan"))

    def gaps_s(self, begin_s: float) -> list[float]:
        """Between two tokens of one answer that ended after begin_s."""
        return [
            after - before
            for before, after in itertools.pairwise(self.arrivals_s)
            if after >= begin_s and after - before >= 0
        ]


@asynccontextmanager
async def running(stream: Stream, job: Job) -> AsyncIterator[Running]:
    """The job, again and again, beside what the context does."""
    found = Running()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(found.run(stream, job), name="running stream")
        await found.settled()
        try:
            yield found
        finally:
            task.cancel()


async def one_request(stream: Stream, adapter: str) -> float:
    """Seconds from sending to the first of two tokens."""
    sample = Sample(sent_s=time.perf_counter())
    async for num_tokens in stream(_job(adapter, max_tokens=2)):
        sample.arrive(num_tokens, time.perf_counter())
    return sample.ttft_s(time.perf_counter())


def _job(adapter: str, max_tokens: int) -> Job:
    # No two alike: none is answered from a cache of prefixes.
    first = next(_prompt_numbers)
    prompt = tuple(range(first, first + _PROMPT_TOKENS))
    return Job(prompt=prompt, adapter=adapter, max_tokens=max_tokens, num_streams=1)


async def stall(
    peer: Peer, session: aiohttp.ClientSession, setup: Setup, new: Sequence[str]
) -> report.Row:
    """The stream's gaps while the new adapters come, and while the same is asked without."""

    def stream(job: Job) -> AsyncIterator[int]:
        return peer.stream(session, job)

    known = setup.names[0]
    async with running(stream, _job(known, max_tokens=400)) as found:
        begin_s = time.perf_counter()
        for _ in new:
            await one_request(stream, known)
        without = found.gaps_s(begin_s)
        begin_s = time.perf_counter()
        firsts = []
        for name in new:
            sent_s = time.perf_counter()
            if isinstance(peer, vllm_cpu.Vllm):
                await peer.load(name, setup.adapters / name)
            asked_s = time.perf_counter()
            firsts.append(asked_s - sent_s + await one_request(stream, name))
        loading = found.gaps_s(begin_s)
    return {
        "peer": peer.name,
        "variant": peer.variant,
        "loads": len(new),
        "gap_p50_ms": quantile(loading, 0.5) * 1e3,
        "gap_p99_ms": quantile(loading, 0.99) * 1e3,
        "gap_max_ms": max(loading) * 1e3,
        "gap_max_without_loads_ms": max(without) * 1e3,
        "longest_to_median": max(loading) / quantile(loading, 0.5),
        "cold_ttft_p50_ms": quantile(firsts, 0.5) * 1e3,
        "cold_ttft_max_ms": max(firsts) * 1e3,
    }


async def measure_peer(
    peer: Peer, setup: Setup, new: Sequence[str], rounds: int
) -> list[report.Row]:
    """A row for each round, with other new adapters. The best round is the least disturbed one."""
    try:
        await peer.start()
        bench = Bench(setup.model, Lengths(requests=1, tokens=8, limit_s=300))
        await bench.warm_up(peer, Level(num_streams=2, adapters=setup.names[:KNOWN]))
        found = []
        async with client_session() as session:
            share = len(new) // rounds
            for number in range(rounds):
                part = new[number * share : (number + 1) * share]
                found.append(await stall(peer, session, setup, part) | {"round": number})
                progress(f"{peer.name}, round {number}: {len(part)} loads")
    finally:
        await peer.stop()
    return found


def candidates(given: argparse.Namespace, setup: Setup, loads: int) -> list[tuple[Peer, list[str]]]:
    """Each peer, and the adapters that it will meet for the first time."""
    known = replace(setup, names=setup.names[:KNOWN], thread_counts=setup.thread_counts[:1])
    found: list[tuple[Peer, list[str]]] = []
    if "anole" in given.peers:
        enough = ("--worker-memory-bytes", str(ANOLE_MEMORY_BYTES))
        tight = replace(known, anole_arguments=(*enough, *known.anole_arguments))
        found.append((anole.variants(tight)[0], list(setup.names[KNOWN:])))
    if "vllm" in given.peers:
        try:
            # Its first precision: what a load takes hardly depends on it.
            new = list(setup.names[KNOWN : KNOWN + loads])
            found.append((vllm_cpu.variants(known)[0], new))
        except NotInstalled as reason:
            progress(f"vllm: not installed: {reason} (bench/README.md says how)")
    return found


async def measure(given: argparse.Namespace) -> report.Row:
    """All peers, one after the other."""
    ranks = tuple(itertools.islice(itertools.cycle(RANKS), KNOWN + given.loads))
    setup = setup_of(given, ranks, max_streams=8)
    rows: list[report.Row] = []
    for peer, new in candidates(given, setup, given.vllm_loads):
        try:
            rows += await measure_peer(peer, setup, new, given.rounds)
        except ServerFault as fault:
            progress(f"{peer.name}: {fault}")
    result = {"machine": report.about(), "stall": rows}
    report.write(given.out, result)
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers.load_stall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--peers", type=lambda words: words.split(","), default=["anole", "vllm"], metavar="NAMES"
    )
    parser.add_argument("--loads", type=int, default=50, help="by Anole (%(default)s)")
    parser.add_argument("--vllm-loads", type=int, default=10, help="by vLLM (%(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=2, help="that the loads are split into (%(default)s)"
    )
    add_flags(parser)
    with contextlib.suppress(KeyboardInterrupt):
        rows = asyncio.run(measure(parser.parse_args()))["stall"]
        for row in rows:
            print(", ".join(f"{name.replace('_', ' ')}: {_cell(row[name])}" for name in row))


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
