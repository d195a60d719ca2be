"""vLLM on a CPU, over the same HTTP calls as Anole."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from bench.load_client import Job, openai_stream
from bench.peers.peer import NotInstalled, Peer, Setup
from bench.peers.process import ServerProcess, free_port, post

_BASE = "base"
_MAX_MODEL_LEN = 1024
_KV_CACHE_GIB = 2


class Vllm:
    """`vllm serve` with as many adapters in a batch as are used."""

    name = "vllm"

    def __init__(self, setup: Setup, python: object, dtype: str, threads: int) -> None:
        self.variant = f"{dtype}, threads={threads}"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = [
            *("--dtype", dtype, "--max-model-len", str(_MAX_MODEL_LEN)),
            *("--max-num-seqs", str(setup.max_streams), "--enable-lora"),
            *("--max-loras", str(len(setup.names)), "--max-lora-rank", str(setup.max_rank)),
            *("--max-cpu-loras", str(2 * len(setup.names))),
        ]
        # The last cores: with fewer threads than cores the first are left to the HTTP server.
        cores = os.cpu_count() or threads
        environment = {
            "LD_PRELOAD": setup.vllm_preload,
            "VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": f"{cores - threads}-{cores - 1}",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        preloaded = ", ".join(Path(name).name for name in setup.vllm_preload.split(":") if name)
        self.settings = (
            f"vllm serve {' '.join(options)}, threads bound to cores "
            f"{environment['VLLM_CPU_OMP_THREADS_BIND']}, preloaded: {preloaded or 'nothing'}"
        )
        command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", setup.model, "--served-model-name", _BASE),
            *("--host", "127.0.0.1", "--port", str(port)),
            *options,
            "--lora-modules",
            *(f"{name}={setup.adapters / name}" for name in setup.names),
        ]
        self._server = ServerProcess(
            command,
            log=setup.work / f"vllm-{dtype}-{threads}.log",
            environment=environment,
        )
        self.cpu_s = self._server.cpu_s
        self.memory_bytes = self._server.memory_bytes
        self.stop = self._server.stop

    async def start(self) -> None:
        await self._server.start(f"{self.url}/health", within_s=900)

    def stream(self, session: aiohttp.ClientSession, job: Job) -> AsyncIterator[int]:
        return openai_stream(session, self.url, job.adapter or _BASE, job)

    async def load(self, name: str, path: object) -> None:
        """Make one more adapter known, which is when vLLM reads it."""
        await post(f"{self.url}/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})


def variants(setup: Setup) -> list[Peer]:
    """Which is faster depends on the CPU and on who else uses it."""
    if setup.vllm_python is None:
        raise NotInstalled("give --vllm-python, the interpreter of vLLM's environment")
    return [
        Vllm(setup, setup.vllm_python, dtype, threads)
        for dtype in ("bfloat16", "float32")
        for threads in setup.thread_counts
    ]
