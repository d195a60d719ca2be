"""What the stack adds to the worker: `anole up` over HTTP against the worker called in process.

Both have the same settings, prompts and adapters, and answer the same jobs in turns. Gateway,
scheduler and worker of `anole up` share one process here, so that their Python also takes time
from the worker's.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer

from bench import adapters
from bench.adapters import mixed_name
from bench.load_client import (
    Job,
    Outcome,
    Stream,
    client_session,
    openai_stream,
    prompts,
    quantile,
    run,
)
from bench.peers.process import ServerProcess, free_port
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from bench.worker import serving

LEVELS, _QUICK_LEVELS = (1, 8, 32), (1, 8)
NUM_ADAPTERS = 8
_PROMPT_TOKENS = (64, 128)
_ANSWER_TOKENS, _QUICK_ANSWER_TOKENS = 48, 24
_ALONE, _ALONE_TOKENS = 10, 8
"""Requests of a single stream, one after the other, and their tokens: it shows the TTFT."""
_ROUNDS, _QUICK_ROUNDS = 3, 2
_MAX_NUM_SEQS = 32
_LIMIT_S, _START_S = 300.0, 180.0
_BASE = "base"

Jobs = list[list[Job]]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """All jobs of a round by one side."""

    outcome: Outcome
    cpu_s: float

    @property
    def cpu_s_per_token(self) -> float:
        return self.cpu_s / self.outcome.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompts:
    """Makes the same jobs for both sides, other ones in each round."""

    tokenizer: Tokenizer
    answer_tokens: int

    def jobs(self, num_streams: int, seed: int) -> Jobs:
        """Of each stream, to be sent one after the other."""
        each = _ALONE if num_streams == 1 else 1
        texts = prompts(self._encode, num_streams * each, _PROMPT_TOKENS, seed)
        jobs = [
            Job(
                prompt=text,
                adapter=mixed_name(index % NUM_ADAPTERS),
                max_tokens=_ALONE_TOKENS if num_streams == 1 else self.answer_tokens,
                num_streams=num_streams,
            )
            for index, text in enumerate(texts)
        ]
        return [jobs[begin : begin + each] for begin in range(0, len(jobs), each)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def measure(plan: Plan) -> list[Table]:
    """Both sides at every level."""
    return [_table(asyncio.run(_measure(plan)))]


async def _measure(plan: Plan) -> list[Record]:
    folder = adapters.folder_of(plan)
    port = free_port()
    log = plan.work / "overhead-anole-up.log"
    server = ServerProcess(_command(plan, folder, port), log=log, environment={})
    url = f"http://127.0.0.1:{port}"
    progress("    starting anole up, and a worker in this process")
    try:
        await server.start(f"{url}/ready", within_s=_START_S)
        async with (
            client_session() as session,
            serving(plan, folder, max_num_seqs=_MAX_NUM_SEQS, num_threads=1) as worker,
        ):
            over_http = partial(openai_stream, session, url)
            sides: dict[str, Stream] = {
                "worker": worker.stream,
                "stack": lambda job: over_http(job.adapter or _BASE, job),
            }
            clocks: dict[str, Clock] = {"worker": time.process_time, "stack": server.cpu_s}
            return [row async for row in _levels(plan, sides, clocks)]
    finally:
        await server.stop()


def _command(plan: Plan, folder: Path, port: int) -> list[object]:
    return [
        *(sys.executable, "-m", "anole_cli", "up", "--port", port, "--log-level", "warning"),
        *("--model", plan.model, "--model-name", _BASE, "--adapters", folder),
        *("--worker-max-num-seqs", _MAX_NUM_SEQS, "--worker-num-threads", 1),
    ]


async def _levels(
    plan: Plan, sides: Mapping[str, Stream], cpu_s: Mapping[str, Clock]
) -> AsyncIterator[Record]:
    source = _Prompts(
        tokenizer=Tokenizer.from_file(str(plan.model / "tokenizer.json")),
        answer_tokens=_QUICK_ANSWER_TOKENS if plan.is_quick else _ANSWER_TOKENS,
    )
    for stream in sides.values():  # loads the adapters
        await run(stream, source.jobs(NUM_ADAPTERS, seed=0), _LIMIT_S)
    for num_streams in _QUICK_LEVELS if plan.is_quick else LEVELS:
        progress(f"    {num_streams} streams")
        found: dict[str, list[_Run]] = {name: [] for name in sides}
        for number in range(_QUICK_ROUNDS if plan.is_quick else _ROUNDS):
            jobs = source.jobs(num_streams, seed=100 * num_streams + number)
            for name, stream in sides.items():
                found[name].append(await _one_run(stream, jobs, cpu_s[name]))
        yield _row(num_streams, found["worker"], found["stack"])


async def _one_run(stream: Stream, jobs: Jobs, cpu_s: Clock) -> _Run:
    before_s = cpu_s()
    outcome = await run(stream, jobs, _LIMIT_S)
    if outcome.was_cut or outcome.faults:
        raise RuntimeError(f"requests failed: {outcome.faults[:1] or 'the time limit came first'}")
    return _Run(outcome=outcome, cpu_s=cpu_s() - before_s)


def _row(num_streams: int, worker: list[_Run], stack: list[_Run]) -> Record:
    pairs = list(zip(worker, stack, strict=True))
    ttft, stack_ttft = (_ttft_s(runs) for runs in (worker, stack))
    return {
        "streams": num_streams,
        "worker_tokens_per_s": statistics.median(one.outcome.tokens_per_s for one in worker),
        "tokens_per_s": statistics.median(one.outcome.tokens_per_s for one in stack),
        "lost": statistics.median(
            1 - two.outcome.tokens_per_s / one.outcome.tokens_per_s for one, two in pairs
        ),
        "worker_cpu_ms": statistics.median(one.cpu_s_per_token for one in worker) * 1e3,
        "cpu_ms": statistics.median(one.cpu_s_per_token for one in stack) * 1e3,
        "worker_ttft_ms": ttft * 1e3,
        "ttft_ms": stack_ttft * 1e3,
        "added_ms": (stack_ttft - ttft) * 1e3,
    }


def _ttft_s(runs: list[_Run]) -> float:
    return quantile([ttft for one in runs for ttft in one.outcome.ttfts_s], 0.5)


def _table(rows: list[Record]) -> Table:
    return Table(
        name="overhead",
        title=f"`anole up` over HTTP against the worker in process, {NUM_ADAPTERS} adapters",
        columns=(
            Column(key="streams", title="streams"),
            Column(key="worker_tokens_per_s", title="worker tokens/s", form=".1f"),
            Column(key="tokens_per_s", title="stack tokens/s", form=".1f"),
            Column(key="lost", title="lost", form=".1%"),
            Column(key="worker_cpu_ms", title="worker CPU ms/token", form=".1f"),
            Column(key="cpu_ms", title="stack CPU ms/token", form=".1f"),
            Column(key="worker_ttft_ms", title="worker TTFT ms", form=".0f"),
            Column(key="ttft_ms", title="stack TTFT ms", form=".0f"),
            Column(key="added_ms", title="added ms", form=".1f"),
        ),
        rows=tuple(rows),
        note=(
            "Wall time but for the CPU's, medians. The CPU's is of the process: the worker's with "
            "who asks in it, the stack's without. TTFT is what adds up where one stream asks "
            "alone; where many ask at once it is how long they wait for each other's prompts. "
            "Aims: under 5 % lost, under 5 ms added."
        ),
    )
