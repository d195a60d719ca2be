"""What memory adapters take beyond their weights, and how much of the shared budget lies idle."""

import ctypes
import gc
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from anole_memd.status import memory_status
from anole_shared.units import GiB, MiB
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.eviction import Lru
from anole_worker.core.memory import Memory
from anole_worker.core.residency import AdapterCache, Residency
from anole_worker.leases import Region, RegionClient
from anole_worker.safetensors_header import ITEM_BYTES
from bench import adapters
from bench.adapters import KINDS, MIXED_RANKS, Kind
from bench.memd import leasing
from bench.rig import Rig, adapter_of, kv_bytes, name_of, preferred, rigged
from bench.section import Plan, progress
from bench.table import Column, Record, Table

NUM_MIXED, _QUICK_MIXED = 100, 20
NUM_LOADS, _QUICK_LOADS = 10_000, 1000
NUM_REAL_LOADS, _QUICK_REAL_LOADS = 300, 50
NUM_KNOWN = 200
BUDGET_BYTES, REAL_BUDGET_BYTES = GiB, GiB // 2
_KIND_BYTES, _QUICK_KIND_BYTES, _MAX_OF_KIND = 128 * MiB, 16 * MiB, 40
_BLOCK_TOKENS = 16
_MAX_BLOCKS = 32
_MAX_RUNNING = 16
_STATUS_S = 10.0
_SEED = 1


def measure(plan: Plan) -> list[Table]:
    """What is held for weights, then what is left unused under churn."""
    dtype = preferred(plan)
    with rigged(plan, dtype) as rig:
        progress("    regions of adapters")
        held = [_held_of_kind(plan, rig, kind) for kind in KINDS]
        files = _mixed_files(plan, _QUICK_MIXED if plan.is_quick else NUM_MIXED)
        held.append(_held(rig, f"mixed, ranks 8 to {MIXED_RANKS[-1]}", files))
        for stored in ("float16", "float32"):
            name = f"all, ranks 8 to {MIXED_RANKS[-1]}, stored in {stored}"
            held.append(_held(rig, name, adapters.read_mixed(plan, stored)))
        known = [
            adapter_of(file, f"adapter-{index}", rig.device.adapter_bytes(file))
            for index, file in enumerate(_mixed_files(plan, NUM_KNOWN))
        ]
        block_bytes = _BLOCK_TOKENS * kv_bytes(rig.shape, dtype)
    progress("    loads and evictions at random")
    churn = [
        ledger_alone(known, block_bytes, _QUICK_LOADS if plan.is_quick else NUM_LOADS).row(
            "ledger, with KV blocks"
        ),
        with_regions(known, _QUICK_REAL_LOADS if plan.is_quick else NUM_REAL_LOADS).row(
            "ledger and memd's regions"
        ),
    ]
    return [_held_table(held, name_of(dtype)), _churn_table(churn)]


def _held_of_kind(plan: Plan, rig: Rig, kind: Kind) -> Record:
    """So many of one size that what a load leaves behind besides is small against them."""
    file = adapters.read(plan, kind)
    most = _QUICK_KIND_BYTES if plan.is_quick else _KIND_BYTES
    count = min(_MAX_OF_KIND, most // rig.device.adapter_bytes(file))
    return _held(rig, f"{kind.modules}, rank {kind.rank}", [file] * max(count, 1))


def _mixed_files(plan: Plan, count: int) -> list[AdapterFile]:
    kinds = [kind for kind in KINDS if kind.rank in MIXED_RANKS]
    files = [adapters.read(plan, kind) for kind in kinds]
    return [files[index % len(files)] for index in range(count)]


def _held(rig: Rig, name: str, files: Sequence[AdapterFile]) -> Record:
    """Load the files and see what memd has leased and what this process has got."""
    before_leased, before_resident = _leased_bytes(rig), _resident_bytes()
    loaded = [rig.load(file) for file in files]
    leased = _leased_bytes(rig) - before_leased
    resident = _resident_bytes() - before_resident
    rig.drop(loaded)
    weights = sum(file.packed_bytes(ITEM_BYTES[file.stored]) for file in files)
    return {
        "adapters": name,
        "count": len(files),
        "weights_mib": weights / MiB,
        "region_mib": leased / MiB,
        "ratio": leased / weights,
        "resident_ratio": resident / weights,
    }


def _leased_bytes(rig: Rig) -> int:
    return memory_status(rig.memd_socket, timeout_s=_STATUS_S).leased_bytes


def _resident_bytes() -> int:
    """What of this process is in memory, shared regions included, what was freed not."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    rollup = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"^Rss:\s+(\d+) kB", rollup, re.MULTILINE)
    assert found is not None, "the kernel tells no Rss"
    return int(found[1]) * 1024


@dataclass(slots=True, kw_only=True)
class Churn:
    """What loads and evictions at random have left unused."""

    budget_bytes: int
    num_loads: int = 0
    num_evictions: int = 0
    num_misplaced: int = 0
    """Adapters for which something had to go although the unused bytes were enough."""
    unused: list[float] = field(default_factory=list)
    """Of the budget, each time that the next adapter did not fit into what was unused."""
    held_bytes: int = 0
    """In regions at the end; 0 where there are none."""
    ledger_bytes: int = 0

    def claim(self, memory: Memory, adapter: Adapter, now: float) -> tuple[Adapter, ...] | None:
        """Room for the adapter; the adapters that go for it, None where too little can go."""
        unused = memory.unused_bytes + memory.blocks.num_free * memory.block_bytes
        cached = memory.blocks.num_cached
        victims = memory.claim(adapter, now)
        self.num_loads += victims is not None
        self.num_evictions += len(victims or ())
        if adapter.num_bytes > unused:
            self.unused.append(unused / self.budget_bytes)
        elif victims is None or victims or memory.blocks.num_cached < cached:
            self.num_misplaced += 1
        return victims

    def row(self, name: str) -> Record:
        """For the table."""
        return {
            "what": name,
            "loads": self.num_loads,
            "evictions": self.num_evictions,
            "misplaced": self.num_misplaced,
            "median": statistics.median(self.unused) if self.unused else None,
            "most": max(self.unused) if self.unused else None,
            "held": self.held_bytes / self.ledger_bytes if self.held_bytes else None,
        }


def ledger_alone(known: Sequence[Adapter], block_bytes: int, num_loads: int) -> Churn:
    """Adapters come and go beside sequences that take and give back KV blocks."""
    draw = np.random.default_rng(_SEED)
    pool = BlockPool(BUDGET_BYTES // block_bytes)
    memory = Memory(BUDGET_BYTES, block_bytes, pool, AdapterCache(Lru(300.0)))
    churn = Churn(budget_bytes=BUDGET_BYTES)
    running: list[list[int]] = []
    now = 0.0
    while churn.num_loads < num_loads:
        now += 1
        if len(running) == _MAX_RUNNING or (running and draw.random() < 0.25):
            pool.release(running.pop(int(draw.integers(len(running)))), now)
        elif draw.random() < 0.33:
            count = int(draw.integers(1, _MAX_BLOCKS))
            if memory.make_room(count, now):
                running.append([memory.take_block() for _ in range(count)])
        _load_one(memory, churn, known[int(draw.integers(len(known)))], now)
    memory.check_invariants()
    return churn


def _load_one(memory: Memory, churn: Churn, adapter: Adapter, now: float) -> bool:
    """Whether the adapter was loaded for it."""
    memory.adapters.used(adapter, now)
    if memory.adapters.residency(adapter) is not Residency.ABSENT:
        return False
    if churn.claim(memory, adapter, now) is None:
        return False
    memory.adapters.loaded(adapter)
    return True


def with_regions(known: Sequence[Adapter], num_loads: int) -> Churn:
    """The same with regions of a memd whose budget is the ledger's, and written to."""
    draw = np.random.default_rng(_SEED)
    memory = Memory(REAL_BUDGET_BYTES, 1, BlockPool(0), AdapterCache(Lru(300.0)))
    churn = Churn(budget_bytes=REAL_BUDGET_BYTES)
    regions: dict[Adapter, Region] = {}
    with leasing(REAL_BUDGET_BYTES) as socket:
        client = RegionClient(socket, "bench")
        before = _resident_bytes()
        for now in _forever():
            adapter = known[int(draw.integers(len(known)))]
            if not _load_one(memory, churn, adapter, now):
                continue
            for gone in [one for one in regions if _is_gone(memory, one)]:
                regions.pop(gone).release()
            regions[adapter] = client.lease(adapter.num_bytes, purpose="bench", headers={})
            _write(regions[adapter])
            if churn.num_loads == num_loads:
                break
        churn.held_bytes = _resident_bytes() - before
        churn.ledger_bytes = memory.used_bytes
        for region in regions.values():
            region.release()
        client.close()
    return churn


def _forever() -> Iterator[float]:
    now = 0.0
    while True:
        now += 1
        yield now


def _is_gone(memory: Memory, adapter: Adapter) -> bool:
    return memory.adapters.residency(adapter) is Residency.ABSENT


def _write(region: Region) -> None:
    torch.frombuffer(region.buffer, dtype=torch.uint8).fill_(1)


def _held_table(rows: Sequence[Record], dtype: str) -> Table:
    return Table(
        name="held",
        title=f"Memory held for adapters, {dtype}",
        columns=(
            Column(key="adapters", title="adapters"),
            Column(key="count", title="number"),
            Column(key="weights_mib", title="weights MiB", form=".1f"),
            Column(key="region_mib", title="leased MiB", form=".1f"),
            Column(key="ratio", title="leased / weights", form=".4f"),
            Column(key="resident_ratio", title="resident / weights", form=".3f"),
        ),
        rows=tuple(rows),
        note=(
            "Weights: of the files, in bfloat16 where nothing else is said. Leased: what memd "
            "counts. Resident: by how much the worker's process grew, all that belongs to the "
            "adapters in Python included. Aim: under 1.02."
        ),
    )


def _churn_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="fragmentation",
        title="Budget after loads and evictions at random",
        columns=(
            Column(key="what", title="what is driven"),
            Column(key="loads", title="loads"),
            Column(key="evictions", title="evictions"),
            Column(key="misplaced", title="did not fit though there was room"),
            Column(key="median", title="unused when the next does not fit, median", form=".1%"),
            Column(key="most", title="most", form=".1%"),
            Column(key="held", title="resident / ledger", form=".3f"),
        ),
        rows=tuple(rows),
        note=(
            f"Budgets of {BUDGET_BYTES // MiB} and {REAL_BUDGET_BYTES // MiB} MiB, adapters of "
            f"ranks 8 to {MIXED_RANKS[-1]} on attention or all linear modules. Regions lie "
            "anywhere, so that what is unused can always be used: what remains is less than the "
            "next adapter, of which there is always one that is larger."
        ),
    )
