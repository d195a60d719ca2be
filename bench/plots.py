"""Plots for docs/performance.md, as SVG: the tables that are long to read."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.table import Record, Table

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "anole",  # the same figures make the same file
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS = {
    "chameleon": "#2a7f3f",
    "fairshare": "#8fbf6a",
    "lru": "#4a6fa5",
    "gdsf": "#c46a2b",
    "clairvoyant": "#b0b0b0",
}


def draw(tables: Mapping[str, Table], folder: Path) -> Iterator[Path]:
    """Draw each plot whose tables are there; where it was put."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (needed, plot) in _PLOTS.items():
        if tables.keys() >= set(needed):
            path = folder / f"{name}.svg"
            with mpl.rc_context(_STYLE):
                figure = plot(*(tables[one] for one in needed))
                figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            yield path


def _steps(table: Table) -> Figure:
    """For each type and number of rows the ratios of all sets of adapters, with their floors."""
    groups = _grouped(table.rows, ("dtype", "rows"))
    figure = Figure(figsize=(8, 1.1 + 0.95 * len(groups)))
    axes: Any = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for ax, ((dtype, num_rows), rows) in zip(axes, groups.items(), strict=True):
        names = [str(row["adapters"]) for row in rows]
        ax.barh(names, [row["ratio"] for row in rows], color=_COLOURS["chameleon"], height=0.65)
        for place, row in enumerate(rows):
            ax.plot([row["floor"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
            if row["aim"] is not None:
                ax.plot([row["aim"]] * 2, [place - 0.4, place + 0.4], color="red", linestyle=":")
        ax.invert_yaxis()
        ax.set_title(f"{dtype}, {num_rows} rows", loc="left", fontsize=9)
        ax.set_xlim(left=0.9)
    axes[-1].set_xlabel("a decode step with adapters / without (black: if only read, red: aim)")
    figure.tight_layout()
    return figure


def _peers(table: Table) -> Figure:
    """Tokens a second of each server at each load, all requests with adapters."""
    mixed = tuple(row for row in table.rows if row["adapters"] != "base")
    levels = _grouped(mixed, ("streams",))
    figure = Figure(figsize=(8, 2.0))
    axes: Any = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for ax, ((streams,), rows) in zip(axes, levels.items(), strict=True):
        rates: list[Any] = [row["tokens_per_s"] for row in rows]
        colours = [_COLOURS["chameleon" if row["peer"] == "anole" else "lru"] for row in rows]
        ax.bar_label(ax.barh([row["peer"] for row in rows], rates, color=colours), fmt="%.0f")
        ax.set_title(f"{streams} stream{'s' * (streams != 1)}", loc="left", fontsize=9)
        ax.set_xlim(right=1.2 * max(rates))
        ax.set_xlabel("tokens/s")
    axes[0].invert_yaxis()
    figure.tight_layout()
    return figure


def _policies(hits: Table, waits: Table) -> Figure:
    """Hits and waits of each policy under each load."""
    names = [column.key for column in hits.columns if column.key in _COLOURS]
    labels = [f"{row['adapters']}\n{row['popularity']}\n{row['share']:.0%}" for row in hits.rows]
    figure = Figure(figsize=(10, 5))
    axes: Any = figure.subplots(2, 1, sharex=True)
    width = 0.8 / len(names)
    for ax, table, title in zip(axes, (hits, waits), ("hits", "mean wait ms"), strict=True):
        for place, name in enumerate(names):
            offset = (place - (len(names) - 1) / 2) * width
            begins = [index + offset for index in range(len(labels))]
            values = [row[name] for row in table.rows]
            ax.bar(begins, values, width, label=name, color=_COLOURS[name])
        ax.set_ylabel(title)
    axes[0].legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    axes[1].set_xticks(range(len(labels)), labels)
    axes[1].set_xlabel("adapters, popularity, memory for how many of their bytes")
    figure.tight_layout()
    return figure


def _demand(table: Table) -> Figure:
    """What each cache keeps resident while demand shifts."""
    figure = Figure(figsize=(8, 3.5))
    axes: Any = figure.subplots()
    seconds = [row["seconds"] for row in table.rows]
    axes.fill_between(
        seconds, [row["demand"] for row in table.rows], color="#d0d0d0", label="demand"
    )
    for key, colour in (("heap", "#4a6fa5"), ("heap, freed", "#c46a2b"), ("regions", "#2a7f3f")):
        axes.plot(seconds, [row[key] for row in table.rows], color=colour, label=key)
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident MiB")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    return figure


def _reclaim(sizes: Table, occupancy: Table) -> Figure:
    """Milliseconds by size, and by how full the memory stays; stock against memd, and paper."""
    figure = Figure(figsize=(8, 3.2))
    by_size: Any
    by_use: Any
    by_size, by_use = figure.subplots(1, 2, sharey=True)
    default = [row for row in sizes.rows if row["zeroing"] == "init_on_alloc=1"]
    for key, paper, name, in_paper, colour in (
        ("stock_ms", "paper_stock_ms", "virtio-mem", "virtio-mem", "#c46a2b"),
        ("segregated_ms", "paper_ms", "memd", "Squeezy", "#2a7f3f"),
    ):
        mib, ms = [str(row["mib"]) for row in default], [row[key] for row in default]
        by_size.plot(mib, ms, "o-", color=colour, label=name)
        told = [row for row in default if row[paper] is not None]
        mib, ms = [str(row["mib"]) for row in told], [row[paper] for row in told]
        by_size.plot(mib, ms, "x", color=colour, label=f"{in_paper} in the paper")
        used = [100 * float(row["occupancy"] or 0) for row in occupancy.rows]
        by_use.plot(used, [row[key] for row in occupancy.rows], "o-", color=colour)
    by_size.set_yscale("log")
    by_size.set_xlabel("MiB given back, half of the memory stays in use")
    by_size.set_ylabel("milliseconds")
    by_use.set_xlabel("% in use while 256 MiB are given back")
    figure.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.tight_layout()
    return figure


def _grouped(
    rows: tuple[Record, ...], keys: tuple[str, ...]
) -> dict[tuple[object, ...], list[Record]]:
    groups: dict[tuple[object, ...], list[Record]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


_PLOTS: Mapping[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {
    "steps": (("steps",), _steps),
    "peers": (("peers",), _peers),
    "memd-demand": (("memd-demand",), _demand),
    "reclaim": (("reclaim-sizes", "reclaim-occupancy"), _reclaim),
    "policies": (("policies-hits", "policies-waits"), _policies),
}
