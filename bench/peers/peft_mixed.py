"""PEFT's mixed batch: `generate(adapter_names=[...])`, one static batch after the other.

PEFT has no server, so peft_server.py gives it one that suits it: all requests of a level are
one batch, begun the moment the last of them is there. Nothing ever waits for a batch to end that
it could have joined.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from bench.load_client import Job, events
from bench.peers.peer import NotInstalled, Peer, Setup
from bench.peers.process import ServerProcess, free_port

_SERVER = Path(__file__).with_name("peft_server.py")


class PeftMixed:
    """peft_server.py over HTTP."""

    name = "peft"

    def __init__(self, setup: Setup, dtype: str, threads: int) -> None:
        self.variant = f"{dtype}, threads={threads}"
        self.settings = f"generate(adapter_names=...), {dtype}, static batches"
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        command = [
            *(setup.peft_python, _SERVER, "--port", str(port)),
            *("--model", setup.model, "--adapters", setup.adapters, "--dtype", dtype),
            *("--threads", str(threads), *setup.names),
        ]
        self._server = ServerProcess(
            command,
            log=setup.work / f"peft-{dtype}-{threads}.log",
            environment={"HF_HUB_OFFLINE": "1"},
        )
        self.cpu_s = self._server.cpu_s
        self.memory_bytes = self._server.memory_bytes
        self.stop = self._server.stop

    async def start(self) -> None:
        await self._server.start(f"{self._url}/health", within_s=300)

    async def stream(self, session: aiohttp.ClientSession, job: Job) -> AsyncIterator[int]:
        body = {
            "prompt": list(job.prompt),
            "adapter": job.adapter,
            "max_tokens": job.max_tokens,
            "batch_size": job.num_streams,
        }
        async for event in events(session, f"{self._url}/generate", body):
            yield event["num_tokens"]


def variants(setup: Setup) -> list[Peer]:
    """Which is faster depends on the CPU and on who else uses it."""
    if not setup.peft_python.exists():
        raise NotInstalled(f"there is no {setup.peft_python}; give --peft-python")
    return [
        PeftMixed(setup, dtype, threads)
        for dtype in ("float32", "bfloat16")
        for threads in setup.thread_counts
    ]
