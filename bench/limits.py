"""What one core of this machine can do at most: the floors that other sections show.

A limit is the best of many tries of several ways: whatever else the machine does only makes a try
slower. All that is measured elsewhere runs on one thread too.
"""

import time
from collections.abc import Callable
from functools import cache

import torch

from anole_shared.units import MiB
from anole_worker.runtime.host_memory import HugePages
from anole_worker.runtime.projection import Projection
from bench.section import Plan
from bench.table import Column, Record, Table

_TRIES = 10
_BYTES = 256 * MiB
"""More than any private cache, like a model's weights."""
_WIDTH = 1024
_SIZES = (512, 1024, 2048)
_GPU_SIZES = (4096, 8192)
DTYPES = (torch.float32, torch.bfloat16)


CPU = torch.device("cpu")


def best_s(call: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of the fastest try: of a CPU's own time, or of a GPU's with nothing else to do."""
    found = []
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    for _ in range(_TRIES):
        _settle(device)
        begin = clock()
        call()
        _settle(device)
        found.append(clock() - begin)
    return min(found)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def read_bytes_per_s(num_bytes: int = _BYTES, device: torch.device = CPU) -> float:
    """Reading so many bytes again and again, by whatever reads them fastest, on huge pages."""
    if device.type == "cpu":
        numbers = torch.from_numpy(HugePages().piece(num_bytes)).view(torch.float32).fill_(1)
    else:
        numbers = torch.ones(num_bytes // 4, device=device)
    matrix, vector = numbers.view(-1, _WIDTH), torch.ones(_WIDTH, device=device)
    ways = (
        lambda: torch.dot(numbers, numbers),
        numbers.sum,
        lambda: torch.mv(matrix, vector),
    )
    return num_bytes / min(best_s(way, device) for way in ways)


@cache
def copy_bytes_per_s(num_bytes: int = _BYTES) -> float:
    """Copying (memcpy) so many bytes into memory that was written before."""
    source = torch.ones(num_bytes // 4)
    target = torch.ones_like(source)
    return num_bytes / best_s(lambda: target.copy_(source))


@cache
def flops_per_s(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Of a product of square matrices, torch's or ours, at the size that suits the device best."""
    sizes = _SIZES if device.type == "cpu" else _GPU_SIZES
    return max(_square_flops_per_s(size, dtype, device) for size in sizes)


def _square_flops_per_s(size: int, dtype: torch.dtype, device: torch.device) -> float:
    left, right = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    ours = Projection(right)
    ways = (lambda: torch.mm(left, right), lambda: ours(left))
    return 2 * size**3 / min(best_s(way, device) for way in ways)


def measure(plan: Plan) -> list[Table]:
    """The limits, one a row."""
    torch.set_num_threads(1)
    small = [4 * MiB, 32 * MiB] if not plan.is_quick else []
    rows: list[Record] = [
        {"what": f"read {size // MiB} MiB", "value": read_bytes_per_s(size) / 1e9, "unit": "GB/s"}
        for size in (*small, _BYTES)
    ]
    rows.append({"what": "memcpy", "value": copy_bytes_per_s() / 1e9, "unit": "GB/s"})
    rows += [
        {
            "what": f"matrix product, {str(dtype).removeprefix('torch.')}",
            "value": flops_per_s(dtype) / 1e9,
            "unit": "GFLOP/s",
        }
        for dtype in DTYPES
    ]
    return [
        Table(
            name="limits",
            title="Limits of one core, the best of many tries",
            columns=(
                Column(key="what", title="limit"),
                Column(key="value", title="at most", form=".1f"),
                Column(key="unit", title="unit"),
            ),
            rows=tuple(rows),
            note=(
                "memcpy counts each byte once: it reads it and writes it. A decode step cannot "
                "take less than the time to read its weights, nor a prompt less than its "
                "operations."
            ),
        )
    ]
