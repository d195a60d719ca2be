"""What the benchmark needs of a server, and what it tells each of them."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import aiohttp

from bench.load_client import Job


class NotInstalled(Exception):
    """A peer is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all peers are given alike, and where each of them is installed."""

    model: Path
    """A Hugging Face folder."""
    adapters: Path
    """A folder of PEFT directories."""
    names: tuple[str, ...]
    """The adapters in it that are used."""
    max_rank: int
    max_streams: int
    thread_counts: tuple[int, ...]
    """Each is tried. All cores are best on a machine of one's own, fewer on a shared one."""
    work: Path
    """For logs and converted files."""
    vllm_python: Path | None
    vllm_preload: str
    """Libraries that vLLM's documentation recommends to preload."""
    peft_python: Path
    llama_server: Path | None
    llama_source: Path | None
    llama_python: Path
    anole_arguments: tuple[str, ...]


class Peer(Protocol):
    """A server that runs as processes of its own on this machine."""

    @property
    def name(self) -> str:
        """Which peer it is: anole, vllm, peft or llama."""

    @property
    def variant(self) -> str:
        """In which of its settings: precision and threads."""

    @property
    def settings(self) -> str:
        """What it runs with, for whoever reads the results."""

    async def start(self) -> None:
        """Start it with all adapters known to it; return once it answers."""

    def stream(self, session: aiohttp.ClientSession, job: Job) -> AsyncIterator[int]:
        """Send the job and yield how many tokens each piece of the answer is."""

    def cpu_s(self) -> float:
        """CPU seconds that its processes have used since they started."""

    def memory_bytes(self) -> int:
        """What its processes hold of the machine's memory, what they share counted once."""

    async def stop(self) -> None:
        """End its processes and wait until they are gone."""


Variants = Callable[[Setup], Sequence[Peer]]
"""A peer in each of its settings that are worth trying; raises NotInstalled."""
