"""Measurements as JSON rows and as a table."""

import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import orjson

from bench import machine
from bench.load_client import quantile
from bench.peers.turns import Measured

Row = dict[str, Any]

_COLUMNS = {
    "peer": "{}",
    "variant": "{}",
    "tokens_per_s": "{:.1f}",
    "anole_over_peer": "{:.2f}x",
    "ttft_p50_ms": "{:.0f}",
    "ttft_p99_ms": "{:.0f}",
    "itl_p50_ms": "{:.1f}",
    "itl_p99_ms": "{:.0f}",
    "itl_max_ms": "{:.0f}",
    "cpu_ms_per_token": "{:.1f}",
    "memory_mib": "{:.0f}",
    "errors": "{}",
}


def row(measured: Measured) -> Row:
    """One measurement; times in milliseconds."""
    return _row([measured]) | {
        "round": measured.round,
        "load_average": round(measured.load_average, 2),
    }


def _row(group: Sequence[Measured]) -> Row:
    """What several measurements of one peer and level say together.

    Throughput and CPU are medians of the rounds, latencies are taken over all their requests.
    """
    first = group[0]
    outcomes = [measured.outcome for measured in group]
    ttfts = [ttft for outcome in outcomes for ttft in outcome.ttfts_s]
    gaps = [gap for outcome in outcomes for gap in outcome.gaps_s]
    tokens = [outcome.num_tokens for outcome in outcomes]
    cpu = [measured.cpu_s / count for measured, count in zip(group, tokens, strict=True) if count]
    return {
        "peer": first.peer.name,
        "variant": first.peer.variant,
        "streams": first.level.num_streams,
        "adapters": first.level.mix,
        "tokens": sum(tokens),
        "tokens_per_s": statistics.median(outcome.tokens_per_s for outcome in outcomes),
        "ttft_p50_ms": quantile(ttfts, 0.5) * 1e3,
        "ttft_p99_ms": quantile(ttfts, 0.99) * 1e3,
        "itl_p50_ms": quantile(gaps, 0.5) * 1e3,
        "itl_p99_ms": quantile(gaps, 0.99) * 1e3,
        "itl_max_ms": max(gaps, default=float("nan")) * 1e3,
        "cpu_ms_per_token": statistics.median(cpu) * 1e3 if cpu else float("nan"),
        "memory_mib": statistics.median(measured.memory_bytes for measured in group) / 2**20,
        "errors": sum(len(outcome.faults) for outcome in outcomes),
        "cut": any(outcome.was_cut for outcome in outcomes),
    }


def summary(measured: Iterable[Measured]) -> list[Row]:
    """One row a level and peer, over all rounds, compared with Anole in the same rounds."""
    groups: dict[tuple[object, str], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.level, one.peer.name), []).append(one)
    rows = []
    for (level, _), group in groups.items():
        ours = {one.round: one.outcome.tokens_per_s for one in groups.get((level, "anole"), ())}
        ratios = [
            ours[one.round] / one.outcome.tokens_per_s
            for one in group
            if one.round in ours and one.outcome.num_tokens
        ]
        ratio = statistics.median(ratios) if ratios else None
        rows.append(_row(group) | {"anole_over_peer": ratio})
    return rows


def table(rows: Sequence[Row]) -> str:
    """A Markdown table for each level."""
    lines = []
    for level in dict.fromkeys((line["streams"], line["adapters"]) for line in rows):
        lines.append(f"\n{level[0]} streams, {level[1]}\n")
        lines.append("| " + " | ".join(name.replace("_", " ") for name in _COLUMNS) + " |")
        lines.append("|" + "---|" * len(_COLUMNS))
        lines += [
            "| " + " | ".join(_cells(line)) + " |"
            for line in rows
            if (line["streams"], line["adapters"]) == level
        ]
    if any(line["cut"] for line in rows):
        lines.append("\n(cut): the time limit came first; what never began counts as waiting.")
    return "\n".join(lines)


def _cells(line: Row) -> list[str]:
    cells = [
        "-" if line[name] is None else form.format(line[name]) for name, form in _COLUMNS.items()
    ]
    return [f"{cells[0]} (cut)", *cells[1:]] if line["cut"] else cells


def write(out: Path | None, result: Row) -> None:
    """Keep the result, if a file was given."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))


def about() -> Row:
    """What the figures were measured on."""
    return machine.describe() | {"commit": machine.commit(), "load_average": os.getloadavg()}
