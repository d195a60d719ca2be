"""Who is measured when: the same levels of load for each peer, the peers in turns."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from tokenizers import Tokenizer

from bench.load_client import Job, Outcome, Stream, client_session, prompts, run
from bench.peers.peer import Peer
from bench.peers.process import ServerFault

PROMPT_TOKENS = (64, 128)
WARM_UP_TOKENS = 8
PROBE_TOKENS = 32
_MAX_WARM_UP_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A kind of load."""

    num_streams: int
    adapters: tuple[str | None, ...]
    """Used by the requests in turns; None is the base model."""

    @property
    def mix(self) -> str:
        return "base" if self.adapters == (None,) else f"{len(self.adapters)} adapters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long a measurement is."""

    requests: int
    """Of each stream, one after the other."""
    tokens: int
    """Generated for each request."""
    limit_s: float
    """After so long a measurement is cut, and what came until then counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement of one peer."""

    peer: Peer
    level: Level
    round: int
    outcome: Outcome
    cpu_s: float
    memory_bytes: int
    load_average: float


class Bench:
    """Makes the same jobs for every peer and measures."""

    def __init__(self, model: Path, lengths: Lengths) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._lengths = lengths

    def plan(
        self, level: Level, seed: int, *, requests: int | None = None, tokens: int | None = None
    ) -> list[list[Job]]:
        """The jobs of each stream: in all peers and runs the same for the same seed."""
        requests = requests or self._lengths.requests
        texts = prompts(self._encode, level.num_streams * requests, PROMPT_TOKENS, seed)
        return [
            [
                Job(
                    prompt=texts[request * level.num_streams + stream],
                    adapter=level.adapters[(stream + request) % len(level.adapters)],
                    max_tokens=tokens or self._lengths.tokens,
                    num_streams=level.num_streams,
                )
                for request in range(requests)
            ]
            for stream in range(level.num_streams)
        ]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    async def measure(
        self, peer: Peer, level: Level, number: int, jobs: Sequence[Sequence[Job]]
    ) -> Measured:
        """Run the jobs against the peer."""
        async with client_session() as session:
            before_s = peer.cpu_s()
            outcome = await run(_stream_of(peer, session), jobs, self._lengths.limit_s)
            cpu_s = peer.cpu_s() - before_s
        measured = Measured(
            peer=peer,
            level=level,
            round=number,
            outcome=outcome,
            cpu_s=cpu_s,
            memory_bytes=peer.memory_bytes(),
            load_average=os.getloadavg()[0],
        )
        _tell(measured)
        return measured

    async def warm_up(self, peer: Peer, level: Level) -> None:
        """Load the level's adapters and let the peer compile what it compiles; not measured."""
        # Each adapter once, however few streams there are.
        requests = -(-len(level.adapters) // level.num_streams)
        jobs = self.plan(level, seed=1, requests=requests, tokens=WARM_UP_TOKENS)
        async with client_session() as session:
            outcome = await run(_stream_of(peer, session), jobs, _MAX_WARM_UP_S)
        for fault in outcome.faults[:1]:
            progress(f"{peer.name}: warming up: {fault}")

    async def probe(self, peers: Sequence[Peer], level: Level) -> tuple[Peer, list[Measured]]:
        """The fastest of a peer's variants, which goes on running; the others are ended.

        Raises:
            ServerFault: none of them starts.
        """
        found: list[Measured] = []
        faults = []
        for peer in peers:
            try:
                await peer.start()
            except ServerFault as fault:
                progress(f"{peer.name} {peer.variant}: {fault}")
                faults.append(f"{peer.variant}: {fault}")
            else:
                await self.warm_up(peer, level)
                # Twice, and the better one counts: other work here only ever slows it.
                for seed in (2, 3):
                    jobs = self.plan(level, seed, requests=1, tokens=PROBE_TOKENS)
                    found.append(await self.measure(peer, level, -1, jobs))
            await peer.stop()
        if not found:
            raise ServerFault("\n".join(faults))
        best = max(found, key=lambda measured: measured.outcome.tokens_per_s).peer
        await best.start()
        return best, found

    async def in_turns(
        self,
        peers: Sequence[Peer],
        levels: Iterable[Level],
        rounds: int,
        keep: Callable[[Measured], None],
    ) -> None:
        """Every round measures each level with each peer, close to one another in time."""
        for level in levels:
            for peer in peers:
                await self.warm_up(peer, level)
            for number in range(rounds):
                jobs = self.plan(level, seed=10 + number)
                for peer in peers:
                    keep(await self.measure(peer, level, number, jobs))


def _stream_of(peer: Peer, session: aiohttp.ClientSession) -> Stream:
    return lambda job: peer.stream(session, job)


def progress(line: str) -> None:
    """Say on stderr how far it is; stdout is for the results."""
    print(line, file=sys.stderr, flush=True)


def _tell(measured: Measured) -> None:
    peer, outcome = measured.peer, measured.outcome
    cut = ", cut by the time limit" if outcome.was_cut else ""
    when = "probe" if measured.round < 0 else f"round {measured.round}"
    progress(
        f"{when}: {peer.name} {peer.variant}, {measured.level.num_streams} streams, "
        f"{measured.level.mix}: {outcome.tokens_per_s:.1f} tokens/s, "
        f"{outcome.num_tokens} tokens, {len(outcome.faults)} errors{cut}"
    )
    for fault in sorted(set(outcome.faults))[:3]:
        progress(f"    {fault}")
