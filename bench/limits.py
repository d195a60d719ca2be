"""What one core of this machine can do at most: the floors that other sections show.

A limit is the best of many tries of several ways: whatever else the machine does only makes a try
slower. All that is measured elsewhere runs on one thread too.
"""

import time
from collections.abc import Callable
from functools import cache

import torch

from anole_shared.units import MiB
from bench.section import Plan
from bench.table import Column, Record, Table

_TRIES = 10
_BYTES = 256 * MiB
"""More than any private cache, like a model's weights."""
_WIDTH = 1024
_SIZES = (512, 1024, 2048)
DTYPES = (torch.float32, torch.bfloat16)


def best_s(call: Callable[[], object], tries: int = _TRIES) -> float:
    """CPU seconds of the fastest try."""
    found = []
    for _ in range(tries):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


@cache
def read_bytes_per_s(num_bytes: int = _BYTES) -> float:
    """Reading so many bytes again and again, by whatever reads them fastest."""
    numbers = torch.ones(num_bytes // 4)
    matrix, vector = numbers.view(-1, _WIDTH), torch.ones(_WIDTH)
    ways = (
        lambda: torch.dot(numbers, numbers),
        numbers.sum,
        lambda: torch.mv(matrix, vector),
    )
    return num_bytes / min(best_s(way) for way in ways)


@cache
def copy_bytes_per_s(num_bytes: int = _BYTES) -> float:
    """Copying (memcpy) so many bytes into memory that was written before."""
    source = torch.ones(num_bytes // 4)
    target = torch.ones_like(source)
    return num_bytes / best_s(lambda: target.copy_(source))


@cache
def flops_per_s(dtype: torch.dtype) -> float:
    """Of a product of two square matrices, at the size that suits the machine best."""
    return max(_square_flops_per_s(size, dtype) for size in _SIZES)


def _square_flops_per_s(size: int, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / best_s(lambda: torch.mm(left, right))


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
