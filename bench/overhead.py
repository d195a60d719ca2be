"""What the stack adds to the worker: `anole up` over HTTP against the worker called in process.

Both have the same settings, prompts and adapters, and answer the same jobs in turns. Gateway,
scheduler and worker of `anole up` share one process here, so that their Python also takes time
from the worker's.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp
from tokenizers import Tokenizer

from anole_shared.telemetry import SpanName
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
from bench.traces import Collector, TraceId, collecting
from bench.worker import Worker, serving

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """All jobs of a round by one side."""

    outcome: Outcome
    cpu_s: float
    added_s: list[float]
    """Of each request: how much of its time to first token was not the worker's."""

    @property
    def cpu_s_per_token(self) -> float:
        return self.cpu_s / self.outcome.num_tokens


class _Side(Protocol):
    """Something that answers jobs."""

    def stream(self, job: Job) -> AsyncIterator[int]: ...

    def cpu_s(self) -> float: ...

    async def added_s(self, ttfts_s: Sequence[float]) -> list[float]:
        """Of the requests since the last call, whose times to first token these are."""
        ...


class _Alone:
    """The worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self.stream: Stream = worker.stream

    def cpu_s(self) -> float:
        return time.process_time()

    async def added_s(self, ttfts_s: Sequence[float]) -> list[float]:
        return [0.0] * len(ttfts_s)


class _Stack:
    """`anole up` over HTTP; its traces tell how long its worker had a request."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, server: ServerProcess, traces: Collector
    ) -> None:
        self.cpu_s = server.cpu_s
        self._session = session
        self._url = url
        self._traces = traces
        self._sent: list[TraceId] = []

    def stream(self, job: Job) -> AsyncIterator[int]:
        trace = TraceId()
        self._sent.append(trace)
        return openai_stream(self._session, self._url, job.adapter or _BASE, job, trace.headers)

    async def added_s(self, ttfts_s: Sequence[float]) -> list[float]:
        sent, self._sent = self._sent, []
        return [
            ttft_s - await self._worker_s(trace)
            for ttft_s, trace in zip(ttfts_s, sent, strict=True)
        ]

    async def _worker_s(self, trace: TraceId) -> float:
        """From the worker's getting the request to its first token."""
        begins_s = await self._traces.begins_s(trace, {SpanName.SEQUENCE, SpanName.DECODE})
        return begins_s[SpanName.DECODE] - begins_s[SpanName.SEQUENCE]


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
    url = f"http://127.0.0.1:{port}"
    progress("    starting anole up, and a worker in this process")
    async with AsyncExitStack() as stack:
        traces = await stack.enter_async_context(collecting())
        server = ServerProcess(
            _command(plan, folder, port),
            log=plan.work / "overhead-anole-up.log",
            environment={"OTEL_EXPORTER_OTLP_ENDPOINT": traces.endpoint},
        )
        stack.push_async_callback(server.stop)
        await server.start(f"{url}/ready", within_s=_START_S)
        session = await stack.enter_async_context(client_session())
        worker = await stack.enter_async_context(
            serving(plan, folder, max_num_seqs=_MAX_NUM_SEQS, num_threads=1)
        )
        over_http = _Stack(session, url, server, traces)
        return [row async for row in _levels(plan, _Alone(worker), over_http)]


def _command(plan: Plan, folder: Path, port: int) -> list[object]:
    return [
        *(sys.executable, "-m", "anole_cli", "up", "--port", port, "--log-level", "warning"),
        *("--model", plan.model, "--model-name", _BASE, "--adapters", folder),
        *("--worker-max-num-seqs", _MAX_NUM_SEQS, "--worker-num-threads", 1),
    ]


async def _levels(plan: Plan, worker: _Side, stack: _Side) -> AsyncIterator[Record]:
    source = _Prompts(
        tokenizer=Tokenizer.from_file(str(plan.model / "tokenizer.json")),
        answer_tokens=_QUICK_ANSWER_TOKENS if plan.is_quick else _ANSWER_TOKENS,
    )
    for side in (worker, stack):  # loads the adapters
        await _one_run(side, source.jobs(NUM_ADAPTERS, seed=0))
    for num_streams in _QUICK_LEVELS if plan.is_quick else LEVELS:
        progress(f"    {num_streams} streams")
        pairs = []
        for number in range(_QUICK_ROUNDS if plan.is_quick else _ROUNDS):
            jobs = source.jobs(num_streams, seed=100 * num_streams + number)
            pairs.append((await _one_run(worker, jobs), await _one_run(stack, jobs)))
        yield _row(num_streams, pairs)


async def _one_run(side: _Side, jobs: Jobs) -> _Run:
    before_s = side.cpu_s()
    outcome = await run(side.stream, jobs, _LIMIT_S)
    cpu_s = side.cpu_s() - before_s
    if outcome.was_cut or outcome.faults:
        raise RuntimeError(f"requests failed: {outcome.faults[:1] or 'the time limit came first'}")
    return _Run(outcome=outcome, cpu_s=cpu_s, added_s=await side.added_s(outcome.ttfts_s))


def _row(num_streams: int, pairs: list[tuple[_Run, _Run]]) -> Record:
    worker, stack = zip(*pairs, strict=True)
    return {
        "streams": num_streams,
        "worker_tokens_per_s": statistics.median(one.outcome.tokens_per_s for one in worker),
        "tokens_per_s": statistics.median(one.outcome.tokens_per_s for one in stack),
        "lost": statistics.median(
            1 - two.outcome.tokens_per_s / one.outcome.tokens_per_s for one, two in pairs
        ),
        "worker_cpu_ms": statistics.median(one.cpu_s_per_token for one in worker) * 1e3,
        "cpu_ms": statistics.median(one.cpu_s_per_token for one in stack) * 1e3,
        "worker_ttft_ms": _ttft_s(worker) * 1e3,
        "ttft_ms": _ttft_s(stack) * 1e3,
        "added_ms": statistics.median(ms for one in stack for ms in one.added_s) * 1e3,
        "most_added_ms": max(ms for one in stack for ms in one.added_s) * 1e3,
    }


def _ttft_s(runs: Sequence[_Run]) -> float:
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
            Column(key="most_added_ms", title="at most", form=".1f"),
        ),
        rows=tuple(rows),
        note=(
            "Wall time but for the CPU's, medians. The CPU's is of the process: the worker's with "
            "who asks in it, the stack's without, but with its traces. Added: of each request's "
            "time to first token, seen by its client, what its trace does not show as the stack's "
            "own worker's. (Two processes differ by more than that: TTFT is mostly one long step.) "
            "Aims: under 5 % lost, under 5 ms added."
        ),
    )
