"""The tables of a run of bench.guest_reclaim, out of its samples."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from anole_shared.units import MiB
from bench.table import Column, Record, Table

Sample = Mapping[str, Any]

_WAYS = ("stock", "segregated")
_PAPER_MS = {512: (617, None), 2048: (2500, 127)}
"""MiB reclaimed: virtio-mem's and Squeezy's milliseconds, as far as the paper tells (figure 5)."""
_COLUMNS = (
    Column(key="stock_ms", title="stock ms", form=".0f"),
    Column(key="segregated_ms", title="memd ms", form=".0f"),
    Column(key="ratio", title="faster", form=".1f", unit="x"),
    Column(key="ratio_least", title="least", form=".1f", unit="x"),
    Column(key="ratio_ran", title="faster, waiting taken off", form=".1f", unit="x"),
    Column(key="stock_cpu_ms", title="stock, kernel ms", form=".0f"),
    Column(key="segregated_cpu_ms", title="memd, kernel ms", form=".0f"),
    Column(key="stock_pages_migrated", title="stock, pages moved", form=".0f"),
    Column(key="segregated_pages_migrated", title="memd, pages moved", form=".0f"),
    Column(key="stock_share", title="stock, given back", form=".0%"),
    Column(key="segregated_share", title="memd, given back", form=".0%"),
    Column(key="runs", title="runs", form="d"),
)
_NOTE = (
    "Medians. Milliseconds: from the first command until the device's size is what was asked for, "
    "the offlining in the guest included; the end of the processes is not. Faster: the median of "
    "the runs' ratios; least: the smallest of them; waiting taken off: without the time in which "
    "the guest's processor was ready and this busy machine had none for it. Kernel: time of the "
    "guest's processor. Given back: of what was wanted, before the guest gave up."
)


def tables(samples: Sequence[Sample], neighbours: Sequence[Sample]) -> list[Table]:
    """Those for which there are samples of both ways."""
    by_size = [one for one in samples if "occupancy" not in one]
    by_occupancy = [one for one in samples if "occupancy" in one]
    found = [_sizes(by_size)]
    if by_occupancy:
        found.append(
            Table(
                name="reclaim-occupancy",
                title="256 MiB given back, by how much of the memory stays in use",
                columns=(Column(key="occupancy", title="in use", form=".0%"), *_COLUMNS),
                rows=tuple(_compared(by_occupancy, ("occupancy",))),
            )
        )
    if {one["way"] for one in neighbours} == set(_WAYS):
        found.append(_neighbours(neighbours))
    return found


def _sizes(samples: Sequence[Sample]) -> Table:
    rows = []
    for row in _compared(samples, ("zeroing", "mib")):
        stock, squeezy = _PAPER_MS.get(int(str(row["mib"])), (None, None))
        rows.append({**row, "paper_stock_ms": stock, "paper_ms": squeezy})
    return Table(
        name="reclaim-sizes",
        title="Half of the instances end, their memory is given back",
        columns=(
            Column(key="zeroing", title="guest's kernel"),
            Column(key="mib", title="MiB", form="d"),
            *_COLUMNS,
            Column(key="paper_stock_ms", title="paper: virtio-mem ms", form="d"),
            Column(key="paper_ms", title="paper: Squeezy ms", form="d"),
        ),
        rows=tuple(rows),
        note=_NOTE,
    )


def _neighbours(samples: Sequence[Sample]) -> Table:
    rows = []
    for way in _WAYS:
        mine = [one for one in samples if one["way"] == way]
        slowdowns = [one["slowdown"] for one in mine]
        rows.append(
            {
                "way": "memd" if way == "segregated" else way,
                "slowdown": statistics.median(slowdowns),
                "most": max(slowdowns),
                "ms": statistics.median(one["ms"] for one in mine),
                "lost_ms": statistics.median(one["lost_ms"] for one in mine),
                "computing": statistics.median(one["computing"] for one in mine),
                "noise": statistics.median(one["noise"] for one in mine),
                "times": len(mine),
            }
        )
    return Table(
        name="reclaim-neighbour",
        title="A process on the guest's other processor while 512 MiB are given back",
        columns=(
            Column(key="way", title="way"),
            Column(key="slowdown", title="slower, median", form=".0%"),
            Column(key="most", title="most", form=".0%"),
            Column(key="computing", title="slower when only computing", form=".0%"),
            Column(key="noise", title="noise", form=".0%"),
            Column(key="ms", title="for ms", form=".0f"),
            Column(key="lost_ms", title="its work lost ms", form=".0f"),
            Column(key="times", title="times", form="d"),
        ),
        rows=tuple(rows),
        note="It writes to its own memory all the time; by its speed against half a second before. "
        "When only computing: while the other processor does nothing but that, for comparison. "
        "Noise: by what share that speed changes between two half seconds when nothing is done. "
        "The paper's Squeezy has no effect on a neighbour that virtio-mem slows more than twofold.",
    )


def _compared(samples: Iterable[Sample], keys: tuple[str, ...]) -> list[Record]:
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        known = {**sample, "mib": sample["wanted_bytes"] // MiB}
        groups.setdefault(tuple(known[key] for key in keys), []).append(known)
    rows: list[Record] = []
    for group, members in groups.items():
        ways = {way: [one for one in members if one["way"] == way] for way in _WAYS}
        if {one["run"] for one in ways["stock"]} & {one["run"] for one in ways["segregated"]}:
            rows.append(_row(ways) | dict(zip(keys, group, strict=True)))
    return rows


def _row(ways: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for way, members in ways.items():
        for key in ("ms", "cpu_ms", "pages_migrated"):
            row[f"{way}_{key}"] = statistics.median(one[key] for one in members)
        shares = [one["bytes"] / one["wanted_bytes"] for one in members]
        row[f"{way}_share"] = statistics.median(shares)
    segregated = {one["run"]: one for one in ways["segregated"]}
    pairs = [(one, segregated[one["run"]]) for one in ways["stock"] if one["run"] in segregated]
    ratios = [stock["ms"] / segregated["ms"] for stock, segregated in pairs]
    ran = [_ran_ms(stock) / _ran_ms(segregated) for stock, segregated in pairs]
    return row | {
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_ran": statistics.median(ran),
        "runs": len(ratios),
    }


def _ran_ms(sample: Sample) -> float:
    ran: float = sample["ms"] - sample["waited_ms"]
    return ran
