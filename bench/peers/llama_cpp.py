"""llama.cpp's own server. A request names its adapters; one batch has one set of them only.

The model and the adapters are converted once to GGUF, with the scripts in llama.cpp's source.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp

from bench.load_client import Job, events
from bench.peers.peer import NotInstalled, Peer, Setup
from bench.peers.process import ServerFault, ServerProcess, free_port

_CONTEXT = 512
"""Tokens a slot; prompts and answers of the benchmark are shorter."""


class LlamaServer:
    """`llama-server` with a slot for each stream."""

    name = "llama"

    def __init__(
        self, setup: Setup, server: Path, source: Path, precision: str, threads: int
    ) -> None:
        self.variant = f"{precision}, threads={threads}"
        self._precision = precision
        self._log = setup.work / f"llama-{precision}-{threads}.log"
        self._setup = setup
        self._binary = server
        self._source = source
        slots = setup.max_streams
        self._options = [
            *("-np", str(slots), "-c", str(_CONTEXT * slots)),
            *("-t", str(threads), "-tb", str(threads)),
            *("-fa", "auto", "--no-cache-prompt", "--lora-init-without-apply"),
        ]
        self.settings = f"llama-server {' '.join(self._options)}, {precision} GGUF"
        self._port = free_port()
        self._server: ServerProcess | None = None

    async def start(self) -> None:
        model, adapters = await asyncio.to_thread(self._convert)
        command: list[object] = [self._binary, "-m", model, "--port", str(self._port)]
        for adapter in adapters:
            command += ["--lora", adapter]
        self._server = ServerProcess([*command, *self._options], log=self._log, environment={})
        await self._server.start(f"http://127.0.0.1:{self._port}/health", within_s=180)

    def stream(self, session: aiohttp.ClientSession, job: Job) -> AsyncIterator[int]:
        return self._tokens(session, job)

    async def _tokens(self, session: aiohttp.ClientSession, job: Job) -> AsyncIterator[int]:
        names = self._setup.names
        # What is not named gets the scale 0; but an empty list means the adapters' first scales,
        # which are not 0 even with --lora-init-without-apply. So the base model has to name one.
        used = {"id": names.index(job.adapter or names[0]), "scale": float(job.adapter is not None)}
        body = {
            "prompt": list(job.prompt),
            "n_predict": job.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "cache_prompt": False,
            "lora": [used],
        }
        so_far = 0
        url = f"http://127.0.0.1:{self._port}/completion"
        async for event in events(session, url, body):
            generated = event.get("tokens_predicted", so_far)
            if generated > so_far:
                yield generated - so_far
                so_far = generated

    def cpu_s(self) -> float:
        return self._server.cpu_s() if self._server else 0.0

    def memory_bytes(self) -> int:
        return self._server.memory_bytes() if self._server else 0

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop()

    def _convert(self) -> tuple[Path, list[Path]]:
        """The GGUF files of the model and of the adapters, made where they are missing."""
        setup = self._setup
        # Beside the adapters, so that other adapters of the same names get files of their own.
        folder = setup.adapters / "gguf"
        folder.mkdir(parents=True, exist_ok=True)
        full = folder / f"{setup.model.name}-f32.gguf"
        to_gguf = [setup.llama_python, self._source / "convert_hf_to_gguf.py", setup.model]
        _make(full, [*to_gguf, "--outtype", "f32", "--outfile"])
        model = folder / f"{setup.model.name}-{self._precision}.gguf"
        quantize = [self._binary.with_name("llama-quantize"), full]
        _make(model, quantize, [self._precision.upper()])
        adapters = []
        for name in setup.names:
            adapters.append(folder / f"{name}.gguf")
            script = self._source / "convert_lora_to_gguf.py"
            from_peft = [setup.llama_python, script, setup.adapters / name, "--base", setup.model]
            _make(adapters[-1], [*from_peft, "--outtype", "f32", "--outfile"])
        return model, adapters


def _make(target: Path, command: Sequence[object], rest: Sequence[str] = ()) -> None:
    """Run a converter that writes the target, unless it is there; it gets its name when whole."""
    if target.exists():
        return
    part = target.with_suffix(".part.gguf")
    words = [str(word) for word in (*command, part, *rest)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode or not part.exists():
        raise ServerFault(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    part.rename(target)


def variants(setup: Setup) -> list[Peer]:
    """In three precisions. Quantised weights are another model, a little worse and far smaller."""
    server, source = setup.llama_server, setup.llama_source
    if server is None or source is None:
        raise NotInstalled("give --llama-server, the binary, and --llama-source, its source")
    return [
        LlamaServer(setup, server, source, precision, threads)
        for precision in ("f32", "bf16", "q4_1")
        for threads in setup.thread_counts
    ]
