"""Giving memory back from a real guest: `make bench-memd`, or python -m bench.guest_reclaim.

QEMU (with KVM where it runs a stock kernel, else translating), Debian's kernel, real virtio-mem.
Instances fill memory side by side, half of them end, and what they had is given back: by
virtio-mem as it comes, and by memd, whose instances have a device and a NUMA node each. The paper's
figures (HotMem, now Squeezy, EuroSys'26) compare the same two, with a kernel of its own.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from anole_shared.errors import AnoleError
from anole_shared.units import MiB
from bench import machine
from bench.guest.guest import Image, image, running
from bench.guest.reclaim import Reclaim, Reclaimer, Segregated, Stock, occupancies, sizes
from bench.section import progress
from bench.table import Column, Record, Table

WAYS: tuple[type[Stock] | type[Segregated], ...] = (Stock, Segregated)
RUNS, QUICK_RUNS = 5, 2
COUNTS, QUICK_COUNTS = (2, 4, 8, 16), (2, 4)
ZEROING = ("init_on_alloc=1", "init_on_alloc=0")
"""Debian's default, and without."""

Sample = dict[str, Any]


async def run(booted_from: Image, runs: int, *, quick: bool, out: Path | None) -> list[Sample]:
    """All measurements, the two ways in turns; kept after each guest."""
    samples: list[Sample] = []
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "commit": machine.commit(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "guest": {
            "kernel": booted_from.packages.kernel.name.removeprefix("vmlinuz-"),
            "accelerator": booted_from.accel,
            "vcpus": Stock.machine.vcpus,
        },
        "samples": samples,
    }
    begin = time.monotonic()
    for number in range(1, runs + 1):
        for zeroing in ZEROING[:1] if quick else ZEROING:
            for way in WAYS:
                progress(
                    f"[{number}/{runs}] {way.name}, {zeroing} "
                    f"({(time.monotonic() - begin) / 60:.0f} min so far)"
                )
                samples += await _one_guest(booted_from, way, number, zeroing, quick=quick)
                result["load_average"] = [round(load, 2) for load in os.getloadavg()]
                result["sections"] = {"reclaim": {"tables": [t.to_json() for t in tables(samples)]}}
                if out is not None:
                    _write(out, result)
    return samples


def _write(out: Path, result: dict[str, Any]) -> None:
    out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))


async def _one_guest(
    booted_from: Image,
    way: type[Stock] | type[Segregated],
    number: int,
    zeroing: str,
    *,
    quick: bool,
) -> list[Sample]:
    samples: list[Sample] = []
    of = {"way": way.name, "run": number, "zeroing": zeroing}

    def keep(reclaim: Reclaim, **more: object) -> None:
        slower = f"neighbour {reclaim.neighbour_slowdown:+.0%}"
        progress(
            f"    {reclaim.wanted_bytes // MiB:5} MiB {more or ''}: {reclaim.ms:8.0f} ms, "
            f"{reclaim.pages_migrated} pages migrated, {slower}"
        )
        samples.append(
            {**of, **more, **asdict(reclaim), "neighbour_slowdown": reclaim.neighbour_slowdown}
        )

    async with running(booted_from, way.machine.with_options(zeroing)) as guest:
        reclaimer: Reclaimer = way(guest)
        await reclaimer.start()
        async for reclaim in sizes(guest, reclaimer, QUICK_COUNTS if quick else COUNTS):
            keep(reclaim)
        if not quick and zeroing == ZEROING[0]:
            async for occupancy, reclaim in occupancies(guest, reclaimer):
                keep(reclaim, occupancy=round(occupancy, 2))
    return samples


def tables(samples: Sequence[Sample]) -> list[Table]:
    """Medians over the runs, the two ways side by side."""
    by_size = [one for one in samples if "occupancy" not in one]
    by_occupancy = [one for one in samples if "occupancy" in one]
    found = [
        Table(
            name="reclaim-sizes",
            title="Half of the instances end, their memory is given back",
            columns=(
                Column(key="zeroing", title="guest's kernel"),
                Column(key="mib", title="MiB"),
                *_COLUMNS,
            ),
            rows=tuple(_compared(by_size, ("zeroing", "mib"))),
            note=_NOTE,
        )
    ]
    if by_occupancy:
        found.append(
            Table(
                name="reclaim-occupancy",
                title="256 MiB given back, by how much of the memory is in use",
                columns=(Column(key="occupancy", title="in use", form=".0%"), *_COLUMNS),
                rows=tuple(_compared(by_occupancy, ("occupancy",))),
            )
        )
    return found


_COLUMNS = (
    Column(key="stock_ms", title="stock ms", form=".0f"),
    Column(key="segregated_ms", title="memd ms", form=".0f"),
    Column(key="ratio", title="faster", form=".0f", unit="x"),
    Column(key="ratio_least", title="least", form=".0f", unit="x"),
    Column(key="stock_cpu_ms", title="stock, guest's kernel CPU ms", form=".0f"),
    Column(key="segregated_cpu_ms", title="memd, CPU ms", form=".0f"),
    Column(key="stock_pages_migrated", title="stock, pages migrated", form=".0f"),
    Column(key="segregated_pages_migrated", title="memd, pages migrated", form=".0f"),
    Column(key="stock_share", title="stock, given back", form=".0%"),
    Column(key="segregated_share", title="memd, given back", form=".0%"),
    Column(key="stock_neighbour_slowdown", title="stock, neighbour slower", form=".0%"),
    Column(key="segregated_neighbour_slowdown", title="memd, neighbour slower", form=".0%"),
    Column(key="noise", title="neighbour's noise", form=".0%"),
    Column(key="runs", title="runs"),
)
_NOTE = (
    "Medians. Faster: the median of the runs' ratios; least: the smallest of them. Milliseconds: "
    "from the first command until the device's size is what was asked for, the offlining in the "
    "guest included; the end of the processes is not. Given back: of what was wanted, before the "
    "guest gave up. Neighbour: a process on the guest's other processor that writes to its own "
    "memory all the time, by its speed against the second before; noise is how much that speed "
    "changes between two half seconds when nothing is done."
)


def _compared(samples: Iterable[Sample], keys: tuple[str, ...]) -> list[Record]:
    groups: dict[tuple[object, ...], list[Sample]] = {}
    for sample in samples:
        known = {**sample, "mib": sample["wanted_bytes"] // MiB}
        groups.setdefault(tuple(known[key] for key in keys), []).append(known)
    rows: list[Record] = []
    for group, members in groups.items():
        ways = {way.name: [one for one in members if one["way"] == way.name] for way in WAYS}
        if all(ways.values()):
            rows.append(_row(ways) | dict(zip(keys, group, strict=True)))
    return rows


def _row(ways: dict[str, list[Sample]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, members in ways.items():

        def median(of: Callable[[Sample], float], members: list[Sample] = members) -> float:
            return statistics.median(map(of, members))

        for key in ("ms", "cpu_ms", "pages_migrated", "neighbour_slowdown"):
            row[f"{name}_{key}"] = median(lambda one, key=key: one[key])  # type: ignore[misc]
        row[f"{name}_share"] = median(lambda one: one["bytes"] / one["wanted_bytes"])
    pairs = zip(ways["stock"], ways["segregated"], strict=False)
    ratios = [stock["ms"] / segregated["ms"] for stock, segregated in pairs]
    noise = statistics.median(one["neighbour_noise"] for each in ways.values() for one in each)
    return row | {
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "noise": noise,
        "runs": len(ratios),
    }


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
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what was measured, as JSON")
    given = parser.parse_args()
    runs = given.runs or (QUICK_RUNS if given.quick else RUNS)
    try:
        samples = asyncio.run(run(image(), runs, quick=given.quick, out=given.out))
    except AnoleError as fault:
        print(f"bench: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for table in tables(samples):
        print(f"{table.markdown()}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
