"""How long an adapter takes from disk into memory, beside a copy of the same bytes.

On a CPU the leased region is where steps read the weights, so that there is no second hop: what
would be "host to device" elsewhere is nothing here.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from anole_shared.units import MiB
from anole_worker.adapter_files import WEIGHTS_NAME, AdapterFile
from anole_worker.leases import RegionClient
from bench import adapters, limits
from bench.adapters import KINDS, Kind
from bench.hugging_face import PeftBatch
from bench.memd import leasing
from bench.rig import Rig, name_of, preferred, rigged
from bench.section import Plan, progress
from bench.table import Column, Record, Table

_PEFT_KINDS = (Kind("attention", 16), Kind("all", 16), Kind("all", 128))
_PEFT_TRIES = 2
_QUICK_RANKS = (16, 128)


def measure(plan: Plan) -> list[Table]:
    """Each size by Anole, and a few by PEFT."""
    dtype = preferred(plan)
    kinds = [kind for kind in KINDS if not plan.is_quick or kind.rank in _QUICK_RANKS]
    with rigged(plan, dtype) as rig, leasing() as socket:
        peft = _peft_seconds(plan, rig)
        client = RegionClient(socket, "bench")
        progress("    Anole loads")
        rows = [
            _row(kind, found, peft.get(kind))
            for kind, found in _all_tries(plan, rig, client, kinds)
        ]
        client.close()
    return [_table(rows, name_of(dtype))]


def _all_tries(
    plan: Plan, rig: Rig, client: RegionClient, kinds: list[Kind]
) -> Iterator[tuple[Kind, dict[str, float]]]:
    """For each size the medians of its times in seconds, and its bytes."""
    for kind in kinds:
        file = adapters.read(plan, kind)
        num_bytes = rig.device.adapter_bytes(file)
        found: dict[str, list[float]] = {}
        for number in range(plan.rounds + 1):
            for name, way in _ways(rig, client, file, num_bytes).items():
                seconds = way()
                if number > 0:
                    found.setdefault(name, []).append(seconds)
        medians = {name: statistics.median(seconds) for name, seconds in found.items()}
        yield kind, {"bytes": num_bytes, **medians}


def _ways(
    rig: Rig, client: RegionClient, file: AdapterFile, num_bytes: int
) -> dict[str, Callable[[], float]]:
    source = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.ones_like(source)
    ways = {
        "memcpy": lambda: _timed(lambda: target.copy_(source)),
        "fresh": lambda: _fresh_copy(client, source),
        "cpu": lambda: _load(rig, file, time.process_time),
        "wall": lambda: _load(rig, file, time.perf_counter),
        "cold": lambda: _cold_load(rig, file),
    }
    if rig.target.type == "cuda":
        pinned = source.pin_memory()
        ways |= {
            "upload": lambda: _upload(rig, file),
            "copy": lambda: limits.best_s(lambda: _to_device(rig, pinned), rig.target),
        }
    return ways


def _upload(rig: Rig, file: AdapterFile) -> float:
    """Back onto the device out of host memory, where its copy has stayed."""
    adapter = rig.load(file)
    rig.drop([adapter])
    begin = time.perf_counter()
    rig.device.load_adapter(adapter, file, {})
    seconds = time.perf_counter() - begin
    rig.drop([adapter])
    return seconds


def _to_device(rig: Rig, pinned: torch.Tensor) -> None:
    pinned.to(rig.target, non_blocking=True)


def _timed(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def _load(rig: Rig, file: AdapterFile, clock: Callable[[], float]) -> float:
    begin = clock()
    adapter = rig.load(file)
    seconds = clock() - begin
    rig.drop([adapter])
    return seconds


def _cold_load(rig: Rig, file: AdapterFile) -> float:
    """From the disk itself: the system is asked to forget the file first."""
    descriptor = os.open(file.path / WEIGHTS_NAME, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return _load(rig, file, time.perf_counter)


def _fresh_copy(client: RegionClient, source: torch.Tensor) -> float:
    """A copy into a region that is leased for it: zeroed by the system page by page."""
    begin = time.process_time()
    region = client.lease(source.nbytes, purpose="copy", headers={})
    torch.frombuffer(region.buffer, dtype=torch.uint8, count=source.nbytes).copy_(source)
    seconds = time.process_time() - begin
    region.release()
    return seconds


def _peft_seconds(plan: Plan, rig: Rig) -> dict[Kind, float]:
    """CPU time of PEFT's load_adapter, with one adapter there and few more."""
    progress("    PEFT loads")
    peft = PeftBatch(plan.model, rig.shape, rig.dtype, plan.device)
    peft.add(adapters.read(plan, KINDS[0]), "first")
    found: dict[Kind, list[float]] = {kind: [] for kind in _PEFT_KINDS}
    for number in range(1 if plan.is_quick else _PEFT_TRIES):
        for kind in _PEFT_KINDS:
            file = adapters.read(plan, kind)
            begin = time.process_time()
            peft.add(file, f"{kind.name}-{number}")
            found[kind].append(time.process_time() - begin)
    return {kind: min(seconds) for kind, seconds in found.items()}


def _row(kind: Kind, found: dict[str, float], peft_s: float | None) -> Record:
    return {
        "modules": kind.modules,
        "rank": kind.rank,
        "mib": found["bytes"] / MiB,
        "cpu_ms": found["cpu"] * 1e3,
        "wall_ms": found["wall"] * 1e3,
        "cold_ms": found["cold"] * 1e3,
        "gb_per_s": found["bytes"] / found["cpu"] / 1e9,
        "memcpy_ms": found["memcpy"] * 1e3,
        "fresh_ms": found["fresh"] * 1e3,
        "ratio": found["cpu"] / found["fresh"],
        "upload_ms": found["upload"] * 1e3 if "upload" in found else None,
        "copy_ms": found["copy"] * 1e3 if "copy" in found else None,
        "peft_ms": None if peft_s is None else peft_s * 1e3,
    }


def _table(rows: list[Record], dtype: str) -> Table:
    return Table(
        name="loads",
        title=f"Loading an adapter (files in bfloat16, model in {dtype})",
        columns=(
            Column(key="modules", title="modules"),
            Column(key="rank", title="rank"),
            Column(key="mib", title="MiB", form=".1f"),
            Column(key="cpu_ms", title="load, CPU ms", form=".1f"),
            Column(key="wall_ms", title="wall ms", form=".1f"),
            Column(key="cold_ms", title="from disk, wall ms", form=".1f"),
            Column(key="gb_per_s", title="GB/s", form=".2f"),
            Column(key="fresh_ms", title="copy into a region ms", form=".1f"),
            Column(key="ratio", title="load / copy", form=".2f"),
            Column(key="memcpy_ms", title="memcpy ms", form=".1f"),
            Column(key="upload_ms", title="host to device, wall ms", form=".1f"),
            Column(key="copy_ms", title="the bytes alone ms", form=".1f"),
            Column(key="peft_ms", title="PEFT, CPU ms", form=".0f"),
        ),
        rows=tuple(rows),
        note=(
            "A load leases a region of memd, reads, checks, lays out and scales the weights; the "
            "files are in the page cache, but for the column from disk. The copy leases a region, "
            "too, and writes as many bytes into it; memcpy goes into memory that was written "
            "before. PEFT's load_adapter takes longer the more adapters are loaded: here few are. "
            "On a CPU the region is the device's memory: nothing is uploaded from it. On a GPU "
            "host to device is a load whose copy has stayed in host memory, beside a copy of as "
            "many bytes out of pinned memory."
        ),
    )
