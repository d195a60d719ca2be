"""Anole itself, as `anole up` runs it: all four services in one process, nothing beside it."""

import sys
from collections.abc import AsyncIterator, Sequence

import aiohttp

from bench.load_client import Job, openai_stream
from bench.peers.peer import Peer, Setup
from bench.peers.process import ServerProcess, free_port

_BASE = "base"


class Anole:
    """`anole up` over HTTP."""

    name = "anole"

    def __init__(self, setup: Setup, variant: str, arguments: Sequence[str]) -> None:
        self.variant = variant
        self.settings = f"anole up {' '.join(arguments)}"
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [
            *(sys.executable, "-m", "anole_cli", "up"),
            *("--model", setup.model, "--model-name", _BASE),
            *("--adapters", setup.adapters, "--port", str(port), "--log-level", "warning"),
            *arguments,
        ]
        self._server = ServerProcess(
            command,
            log=setup.work / f"anole-{variant}.log",
            environment={},
        )
        self.cpu_s = self._server.cpu_s
        self.memory_bytes = self._server.memory_bytes
        self.stop = self._server.stop

    async def start(self) -> None:
        await self._server.start(f"{self._url}/ready", within_s=180)

    def stream(self, session: aiohttp.ClientSession, job: Job) -> AsyncIterator[int]:
        return openai_stream(session, self._url, job.adapter or _BASE, job)


def variants(setup: Setup) -> list[Peer]:
    """With each number of threads; the caller's own arguments win."""
    seqs = ("--worker-max-num-seqs", str(setup.max_streams))
    return [
        Anole(
            setup,
            f"threads={threads}",
            [*seqs, "--worker-num-threads", str(threads), *setup.anole_arguments],
        )
        for threads in setup.thread_counts
    ]
