"""What half of the owners give back when they end: chunks of one heap, or a region each."""

import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from anole_shared.units import GiB, KiB, MiB
from anole_worker.leases import Region, RegionClient
from bench.host_cache import resident_bytes
from bench.memd import leasing
from bench.table import Record

RECLAIMED = (256 * MiB, 512 * MiB, GiB)
WAYS = ("heap", "heap, trimmed", "regions")
NUM_OWNERS = 8
_CHUNK_BYTES = 24 * KiB
"""The median tensor of a small adapter; below what malloc gives a mapping of its own."""
_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.free.argtypes = [ctypes.c_void_p]


def released(num_bytes: int, rounds: int) -> list[Record]:
    """Each way in turn, each time in a fresh process."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    with leasing(3 * num_bytes, floor_bytes=0) as socket:
        for _ in range(rounds):
            for way in WAYS:
                done = subprocess.run(  # noqa: S603
                    [sys.executable, "-m", "bench.heap_release", way, str(num_bytes), str(socket)],
                    stdout=subprocess.PIPE,
                    check=True,
                )
                seconds, returned = orjson.loads(done.stdout)
                found[way].append((seconds, returned))
    return [
        {
            "way": way,
            "asked": num_bytes / MiB,
            "ms": statistics.median(seconds for seconds, _ in runs) * 1000,
            "returned": statistics.median(returned for _, returned in runs) / num_bytes,
        }
        for way, runs in found.items()
    ]


def _timed(release: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and bytes that this process has no more."""
    before, begin = resident_bytes(), time.perf_counter()
    release()
    seconds = time.perf_counter() - begin
    return seconds, before - resident_bytes()


def _from_heap(num_bytes: int, *, is_trimmed: bool) -> tuple[float, int]:
    """Twice num_bytes in chunks of eight owners in turns; every other owner frees its own."""
    content = os.urandom(_CHUNK_BYTES)
    chunks = []
    for _ in range(2 * num_bytes // _CHUNK_BYTES):
        chunks.append(_LIBC.malloc(_CHUNK_BYTES))
        ctypes.memmove(chunks[-1], content, _CHUNK_BYTES)
    # Each of the eight owners has every eighth chunk.
    ended = [chunk for index, chunk in enumerate(chunks) if index % NUM_OWNERS % 2 == 0]

    def release() -> None:
        for chunk in ended:
            _LIBC.free(chunk)
        if is_trimmed:
            _LIBC.malloc_trim(0)

    return _timed(release)


def _from_regions(num_bytes: int, socket: Path) -> tuple[float, int]:
    client = RegionClient(socket, "bench")
    regions: list[Region] = []
    for _ in range(NUM_OWNERS):
        region = client.lease(2 * num_bytes // NUM_OWNERS, purpose="owner", headers={})
        np.frombuffer(region.buffer, dtype=np.uint8)[:] = 1
        regions.append(region)

    def release() -> None:
        for region in regions[::2]:
            region.release()

    return _timed(release)


def main() -> int:
    """One way, once."""
    way, num_bytes, socket = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if way == "regions":
        result = _from_regions(num_bytes, socket)
    else:
        result = _from_heap(num_bytes, is_trimmed=way == "heap, trimmed")
    sys.stdout.buffer.write(orjson.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
