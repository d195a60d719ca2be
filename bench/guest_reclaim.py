"""Giving memory back from a real guest: `make bench-memd`, or python -m bench.guest_reclaim.

QEMU (with KVM where it runs a stock kernel, else translating), Debian's kernel, real virtio-mem.
Instances fill memory side by side, half of them end, and what they had is given back: by
virtio-mem as it comes, and by memd, whose instances have a device and a NUMA node each. The paper's
figures (HotMem, now Squeezy, EuroSys'26) compare the same two, with a kernel of its own.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from anole_shared.errors import AnoleError
from anole_shared.units import MiB
from bench import machine
from bench.guest.guest import Guest, Image, image, running
from bench.guest.reclaim import (
    Reclaim,
    Reclaimer,
    Segregated,
    Stock,
    neighbours,
    occupancies,
    sizes,
)
from bench.guest.reclaim_tables import tables
from bench.section import progress
from bench.table import Table

WAYS: tuple[type[Stock] | type[Segregated], ...] = (Stock, Segregated)
RUNS, QUICK_RUNS = 5, 2
COUNTS, QUICK_COUNTS = (2, 4, 8, 16), (2, 4)
ZEROING = ("init_on_alloc=1", "init_on_alloc=0")
"""Debian's default, and without."""

COUNTS_WITHOUT_ZEROING = COUNTS[:2]
OCCUPANCY_RUNS = 3
NEIGHBOUR_COUNT, NEIGHBOUR_TIMES = 4, 5

Sample = dict[str, Any]
Way = type[Stock] | type[Segregated]


class Run:
    """All measurements, the two ways in turns, kept after each guest."""

    def __init__(self, booted_from: Image, *, quick: bool, out: Path | None) -> None:
        self.samples: list[Sample] = []
        self.neighbours: list[Sample] = []
        self._image = booted_from
        self._quick = quick
        self._out = out
        self._begin = time.monotonic()
        earlier = orjson.loads(out.read_bytes()) if out is not None and out.exists() else {}
        self.samples += earlier.get("samples", [])
        self.neighbours += earlier.get("neighbours", [])
        self._result: dict[str, Any] = {
            "machine": machine.describe(),
            "commit": ", ".join(dict.fromkeys([*_words(earlier.get("commit")), machine.commit()])),
            "began": earlier.get("began", datetime.now(UTC).isoformat(timespec="seconds")),
            "guest": {
                "kernel": booted_from.packages.kernel.name.removeprefix("vmlinuz-"),
                "accelerator": booted_from.accel,
            },
            "load_average": earlier.get("load_average", []),
        }

    async def all(self, runs: int) -> None:
        """Every part; so many guests of each kind for the sizes."""
        default, without = ZEROING
        await self._all_sizes(runs, default, QUICK_COUNTS if self._quick else COUNTS)
        if not self._quick:
            await self._all_neighbours()
            await self._all_sizes(runs, without, COUNTS_WITHOUT_ZEROING)
            await self._all_occupancies()

    async def _all_neighbours(self) -> None:
        for way in WAYS:
            if not any(one["way"] == way.name for one in self.neighbours):
                self._say(f"{way.name}, beside a neighbour")
                await self._neighbours(way)

    async def _all_occupancies(self) -> None:
        for number in range(1, OCCUPANCY_RUNS + 1):
            for way in WAYS:
                if not self._has(way, number, ZEROING[0], by_occupancy=True):
                    self._say(f"[{number}/{OCCUPANCY_RUNS}] {way.name}, by occupancy")
                    await self._occupancies(way, number)

    async def _all_sizes(self, runs: int, zeroing: str, counts: tuple[int, ...]) -> None:
        for number in range(1, runs + 1):
            for way in WAYS:
                if not self._has(way, number, zeroing, by_occupancy=False):
                    self._say(f"[{number}/{runs}] {way.name}, {zeroing}")
                    await self._sizes(way, number, zeroing, counts)

    def _has(self, way: Way, number: int, zeroing: str, *, by_occupancy: bool) -> bool:
        """Whether an earlier run, which was interrupted, measured that."""
        return any(
            (one["way"], one["run"], one["zeroing"]) == (way.name, number, zeroing)
            and ("occupancy" in one) == by_occupancy
            for one in self.samples
        )

    async def _sizes(self, way: Way, number: int, zeroing: str, counts: tuple[int, ...]) -> None:
        of = {"way": way.name, "run": number, "zeroing": zeroing}
        async with self._started(way, zeroing) as (guest, reclaimer):
            async for reclaim in sizes(guest, reclaimer, counts):
                self._add(reclaim, of)

    async def _occupancies(self, way: Way, number: int) -> None:
        of = {"way": way.name, "run": number, "zeroing": ZEROING[0]}
        async with self._started(way, ZEROING[0]) as (guest, reclaimer):
            async for occupancy, reclaim in occupancies(guest, reclaimer):
                self._add(reclaim, of | {"occupancy": round(occupancy, 2)})

    async def _neighbours(self, way: Way) -> None:
        async with self._started(way, ZEROING[0], vcpus=2) as (guest, reclaimer):
            measured = neighbours(guest, reclaimer, NEIGHBOUR_COUNT, NEIGHBOUR_TIMES)
            async for one in measured:
                progress(
                    f"    {one.slowdown:+.0%} slower, {one.computing:+.0%} when the other "
                    f"computes, noise {one.noise:.0%}, {one.lost_ms:.0f} of "
                    f"{one.ms:.0f} ms lost"
                )
                self.neighbours.append({"way": way.name, "lost_ms": one.lost_ms} | asdict(one))

    @asynccontextmanager
    async def _started(
        self, way: Way, zeroing: str, vcpus: int = 1
    ) -> AsyncIterator[tuple[Guest, Reclaimer]]:
        guest_machine = replace(way.machine, vcpus=vcpus, kernel_options=zeroing)
        async with running(self._image, guest_machine) as guest:
            reclaimer: Reclaimer = way(guest)
            await reclaimer.start()
            yield guest, reclaimer
            await reclaimer.close()
        self._keep()

    def _add(self, reclaim: Reclaim, of: Sample) -> None:
        progress(
            f"    {reclaim.wanted_bytes // MiB:5} MiB {of.get('occupancy', '')}: "
            f"{reclaim.ms:7.0f} ms, {reclaim.waited_ms:.0f} of them waiting for this machine, "
            f"{reclaim.pages_migrated} pages migrated"
        )
        self.samples.append(of | asdict(reclaim))

    def _say(self, what: str) -> None:
        progress(f"{what} ({(time.monotonic() - self._begin) / 60:.0f} min so far)")

    def _keep(self) -> None:
        found = [table.to_json() for table in self.tables()]
        self._result["load_average"].append(round(os.getloadavg()[0], 2))
        self._result |= {
            "samples": self.samples,
            "neighbours": self.neighbours,
            "sections": {"reclaim": {"tables": found}},
        }
        if self._out is not None:
            self._out.write_bytes(orjson.dumps(self._result, option=orjson.OPT_INDENT_2))

    def tables(self) -> list[Table]:
        """Medians over the runs, the two ways side by side."""
        return tables(self.samples, self.neighbours)


def _words(commits: str | None) -> list[str]:
    """The commits of a run that was interrupted."""
    return commits.split(", ") if commits else []


def main() -> int:
    """Measure, print the tables, write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.guest_reclaim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--runs", type=int, help=f"guests of each kind ({RUNS}; quick {QUICK_RUNS})"
    )
    parser.add_argument("--quick", action="store_true", help="under five minutes, two sizes")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write what was measured, as JSON; goes on from there if it is there",
    )
    given = parser.parse_args()
    runs = given.runs or (QUICK_RUNS if given.quick else RUNS)
    try:
        measurement = Run(image(), quick=given.quick, out=given.out)
        asyncio.run(measurement.all(runs))
    except AnoleError as fault:
        print(f"bench: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for table in measurement.tables():
        print(f"{table.markdown()}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
