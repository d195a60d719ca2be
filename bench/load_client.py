"""Load for an OpenAI-like server: N streams at once, each with one request after the other.

What is measured of a request is when its tokens arrive here. A server says with each piece of
text how many tokens it has generated so far, so that tokens without visible text count too.
"""

import asyncio
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

QUESTIONS = Path(__file__).parents[1] / "examples" / "data" / "questions.jsonl"
SILENCE_S = 900.0
"""A server that sends nothing for so long has hung."""


class RequestFault(Exception):
    """A request was refused or its answer broke off; the message is the server's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request."""

    prompt: tuple[int, ...]
    adapter: str | None
    """None: the base model."""
    max_tokens: int
    num_streams: int
    """How many requests are sent at once; a driver of static batches waits for them."""


Stream = Callable[[Job], AsyncIterator[int]]
"""Sends a job and yields, as they arrive, how many tokens each piece of the answer is."""


@dataclass(slots=True, kw_only=True)
class Sample:
    """What came of one request."""

    sent_s: float
    first_s: float | None = None
    last_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    """Between pieces of the answer."""
    num_tokens: int = 0
    is_finished: bool = False
    fault: str | None = None

    def ttft_s(self, now_s: float) -> float:
        """Time to the first token; for one that never came, how long it was waited for."""
        return (self.first_s if self.first_s is not None else now_s) - self.sent_s

    def arrive(self, num_tokens: int, now_s: float) -> None:
        if self.first_s is None:
            self.first_s = now_s
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        self.num_tokens += num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All requests of one measurement."""

    samples: tuple[Sample, ...]
    begin_s: float
    end_s: float
    was_cut: bool
    """The time limit came before the last token did."""

    @property
    def num_tokens(self) -> int:
        return sum(sample.num_tokens for sample in self.samples)

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / (self.end_s - self.begin_s)

    @property
    def ttfts_s(self) -> list[float]:
        return [sample.ttft_s(self.end_s) for sample in self.samples if sample.fault is None]

    @property
    def gaps_s(self) -> list[float]:
        return [gap for sample in self.samples for gap in sample.gaps_s]

    @property
    def faults(self) -> list[str]:
        return [sample.fault for sample in self.samples if sample.fault is not None]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; nan of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def prompts(
    encode: Callable[[str], Sequence[int]], count: int, lengths: Sequence[int], seed: int
) -> list[tuple[int, ...]]:
    """Different prompts of real sentences, cut to these lengths in tokens by turns.

    No two begin alike, so that no server answers from a cache of prefixes.
    """
    lines = [json.loads(line) for line in QUESTIONS.read_text().splitlines()]
    texts = [f"{line['question']} {line['answer']}" for line in lines]
    draw = random.Random(seed)  # noqa: S311 - not a secret
    found = []
    for index in range(count):
        length = lengths[index % len(lengths)]
        tokens: list[int] = list(encode(f"{draw.randrange(10**6)}."))
        while len(tokens) < length:
            tokens += encode(f" {draw.choice(texts)}")
        found.append(tuple(tokens[:length]))
    return found


async def run(stream: Stream, plan: Sequence[Sequence[Job]], limit_s: float) -> Outcome:
    """Run each of the streams' jobs in their order, all streams at once."""
    samples: list[Sample] = []
    begin_s = time.perf_counter()
    was_cut = False
    try:
        async with asyncio.timeout(limit_s), asyncio.TaskGroup() as tasks:
            for index, jobs in enumerate(plan):
                tasks.create_task(_one_stream(stream, jobs, samples), name=f"stream {index}")
    except TimeoutError:
        was_cut = True
    return Outcome(
        samples=tuple(samples), begin_s=begin_s, end_s=time.perf_counter(), was_cut=was_cut
    )


async def _one_stream(stream: Stream, jobs: Sequence[Job], samples: list[Sample]) -> None:
    for job in jobs:
        sample = Sample(sent_s=time.perf_counter())
        samples.append(sample)
        try:
            async for num_tokens in stream(job):
                sample.arrive(num_tokens, time.perf_counter())
        except (RequestFault, aiohttp.ClientError) as fault:
            sample.fault = f"{type(fault).__name__}: {fault}"
        else:
            sample.is_finished = True
            if sample.num_tokens != job.max_tokens:
                sample.fault = f"{sample.num_tokens} tokens instead of {job.max_tokens}"


async def events(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event that answers the body.

    Raises:
        RequestFault: the server refused, or sent an error instead of an event.
    """
    async with session.post(url, json=body, headers=headers) as answer:
        if answer.status != 200:
            text = await answer.text()
            raise RequestFault(f"{answer.status}: {text[:300]}")
        async for line in answer.content:
            data = line.removeprefix(b"data: ").strip()
            if not line.startswith(b"data: ") or data == b"[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise RequestFault(str(event["error"])[:300])
            yield event


async def openai_stream(
    session: aiohttp.ClientSession,
    url: str,
    model: str,
    job: Job,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[int]:
    """POST /v1/completions as Anole and vLLM both take it."""
    body = {
        "model": model,
        "prompt": list(job.prompt),
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    so_far = 0
    async for event in events(session, f"{url}/v1/completions", body, headers):
        generated = (event.get("usage") or {}).get("completion_tokens", so_far)
        if generated > so_far:
            yield generated - so_far
            so_far = generated


def client_session() -> aiohttp.ClientSession:
    """A session without a limit on connections or on how long an answer takes in all.

    Each request has a connection of its own: some servers close idle ones just when they are
    used again.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=SILENCE_S),
    )
