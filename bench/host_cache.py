"""A host's cache of adapters in a process of its own: in memd's regions, or in malloc's heap.

    python -m bench.host_cache KIND < a trace, as JSON      (bench.memd_host runs it)

All kinds serve the same requests and keep the same books: the worker's own ledger and eviction
policy. They differ in where the bytes are, and in who asks for them back.
"""

import asyncio
import re
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from anole_memd.core.controller import (
    Controller,
    ControllerLimits,
    Pressure,
    Revoke,
    Sample,
)
from anole_shared.ids import AdapterId
from anole_shared.units import MiB, region_bytes
from anole_worker.core import eviction
from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.memory import Memory
from anole_worker.core.residency import AdapterCache, Residency
from anole_worker.leases import Region, RegionClient
from anole_worker.revocations import Revocations

KINDS = ("regions", "heap", "heap, freed")
SAMPLE_S = 0.25
_STATUS = Path("/proc/self/status")
_RESIDENT = re.compile(r"^(?:RssAnon|RssShmem):\s+(\d+) kB", re.MULTILINE)


def resident_bytes() -> int:
    """Anonymous and shared pages of this process: not those of its program and libraries."""
    return sum(int(found) for found in _RESIDENT.findall(_STATUS.read_text())) * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What is asked for, when."""

    socket: str
    paths: list[str]
    """The weights of each adapter."""
    requests: list[tuple[float, int]]
    """Seconds from the start, and which adapter."""
    idle_s: float
    hold_s: float
    seconds: float


class Store(Protocol):
    """Where the bytes are."""

    def load(self, path: Path, num_bytes: int) -> object: ...

    def drop(self, held: object) -> None: ...


class Regions:
    """One region of memd's an adapter, as the worker has it."""

    def __init__(self, client: RegionClient) -> None:
        self._client = client

    def load(self, path: Path, num_bytes: int) -> Region:
        """Lease a region and read the file into it."""
        region = self._client.lease(num_bytes, purpose=path.parent.name, headers={})
        with path.open("rb", buffering=0) as file:
            file.readinto(region.buffer[:num_bytes])
        return region

    def drop(self, held: object) -> None:
        """Give the region back."""
        assert isinstance(held, Region)
        held.release()


class Heap:
    """One allocation a tensor, as a library that keeps a dictionary of tensors has it."""

    def load(self, path: Path, num_bytes: int) -> list[NDArray[np.uint8]]:
        """Read the file tensor by tensor."""
        del num_bytes
        with path.open("rb", buffering=0) as file:
            header = orjson.loads(file.read(int.from_bytes(file.read(8), "little")))
            spans = sorted(
                entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"
            )
            tensors = [np.empty(end - begin, dtype=np.uint8) for begin, end in spans]
            for tensor in tensors:
                file.readinto(tensor.data)
        return tensors

    def drop(self, held: object) -> None:
        """Free every allocation: their references go with `held`."""


@dataclass(slots=True)
class Cache:
    """The books of a worker, and the bytes."""

    store: Store
    trace: Trace
    memory: Memory
    adapters: list[Adapter]
    held: dict[Adapter, object] = field(default_factory=dict)
    num_loads: int = 0

    def request(self, index: int, now: float) -> None:
        """Use an adapter; load it where it is absent."""
        adapter = self.adapters[index]
        self.memory.adapters.used(adapter, now)
        if self.memory.adapters.residency(adapter) is Residency.RESIDENT:
            return
        self.num_loads += 1
        assert self.memory.claim(adapter, now) == ()
        path = Path(self.trace.paths[index])
        self.held[adapter] = self.store.load(path, path.stat().st_size)
        self.memory.adapters.loaded(adapter)

    def give_up(self, num_bytes: int, now: float) -> int:
        """Let the adapters go that are worth least."""
        gone = self.memory.give_up(num_bytes, now, kept=())
        for adapter in gone:
            self.store.drop(self.held.pop(adapter))
        return sum(adapter.num_bytes for adapter in gone)

    def used_bytes(self, now: float) -> int:
        """What memd is told."""
        return self.memory.adapters.used_bytes_since(now - self.trace.idle_s)


def made(trace: Trace, store: Store) -> Cache:
    """A cache with room for all."""
    adapters = [
        Adapter(
            adapter_id=AdapterId(f"adapter-{index}"),
            generation="1",
            num_bytes=region_bytes(Path(path).stat().st_size),
            rank=8,
        )
        for index, path in enumerate(trace.paths)
    ]
    budget = sum(adapter.num_bytes for adapter in adapters) + MiB
    policy = eviction.by_name(60.0)["chameleon"]
    memory = Memory(budget, MiB, BlockPool(1), AdapterCache(policy))
    return Cache(store=store, trace=trace, memory=memory, adapters=adapters)


async def serve(cache: Cache, kind: str) -> list[dict[str, Any]]:
    """Go through the trace in real time; what was seen at each moment."""
    begin, baseline = time.monotonic(), resident_bytes()
    samples: list[dict[str, Any]] = []
    controller = _controller(cache) if kind == "heap, freed" else None
    requests = iter(cache.trace.requests)
    due = next(requests, None)
    next_sample = 0.0
    while (now := time.monotonic() - begin) < cache.trace.seconds:
        while due is not None and due[0] <= now:
            cache.request(due[1], time.monotonic())
            due = next(requests, None)
        if now >= next_sample:
            next_sample += SAMPLE_S
            if controller is not None:
                _control(cache, controller)
            samples.append(_sample(cache, now, baseline))
        await asyncio.sleep(0.005)
    return samples


def _sample(cache: Cache, now: float, baseline: int) -> dict[str, Any]:
    return {
        "seconds": now,
        "demand_bytes": cache.used_bytes(time.monotonic()),
        "held_bytes": cache.memory.adapters.used_bytes,
        "resident_bytes": max(0, resident_bytes() - baseline),
        "loads": cache.num_loads,
    }


def _controller(cache: Cache) -> Controller:
    """memd's, with the same limits as memd's settings in bench.memd_host."""
    limits = ControllerLimits(
        floor_bytes=0,
        ceiling_bytes=cache.memory.budget_bytes,
        block_bytes=MiB,
        headroom=0.1,
        hold_s=cache.trace.hold_s,
        step=0.125,
        deadline_s=1.0,
    )
    return Controller(limits, 0)


def _control(cache: Cache, controller: Controller) -> None:
    now = time.monotonic()
    sample = Sample(
        used_bytes=cache.used_bytes(now),
        wanted_bytes=0,
        leased_bytes=cache.memory.adapters.used_bytes,
        pressure=Pressure.NONE,
    )
    for command in controller.tick(sample, now):
        if isinstance(command, Revoke):
            cache.give_up(command.num_bytes, now)


async def _served_in_regions(trace: Trace) -> list[dict[str, Any]]:
    client = RegionClient(Path(trace.socket), "bench")
    cache = made(trace, Regions(client))

    async def give_up(num_bytes: int) -> int:
        return cache.give_up(num_bytes, time.monotonic())

    used = Revocations(
        Path(trace.socket), lambda: cache.used_bytes(time.monotonic()), give_up, report_s=SAMPLE_S
    )
    async with asyncio.TaskGroup() as tasks:
        listening = tasks.create_task(used.run(), name="bench revocations")
        samples = await serve(cache, "regions")
        listening.cancel()
    return samples


def main() -> int:
    """Read the trace, serve it, write what was seen."""
    kind = sys.argv[1]
    trace = Trace(**orjson.loads(sys.stdin.buffer.read()))
    if kind == "regions":
        samples = asyncio.run(_served_in_regions(trace))
    else:
        samples = asyncio.run(serve(made(trace, Heap()), kind))
    sys.stdout.buffer.write(orjson.dumps(samples))
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main())
