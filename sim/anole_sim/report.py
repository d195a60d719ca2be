"""Results as Markdown tables for people, and as JSON for machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from anole_sim.golden import Check
from anole_sim.metrics import Summary

Cell = str | float | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under titles."""

    name: str
    """Under which docs/simulation.md shows it."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """The title, the table and the note."""
        lines = [f"**{self.title}**", "", _line(self.columns)]
        lines.append(_line("---" if place == 0 else "---:" for place in range(len(self.columns))))
        lines += [_line(map(_cell, row)) for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """What a machine reads."""
        return asdict(self)


def _line(cells: Any) -> str:  # noqa: ANN401
    return "| " + " | ".join(cells) + " |"


def _cell(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


SUMMARY = (
    "system", "req/s", "link", "TTFT P50", "TTFT P99", "TPOT P99", "TBT P99", "E2E P99",
    "goodput", "hit", "MB/s", "longest wait", "preempted", "small", "medium", "large",
)  # fmt: skip


def summary_row(name: str, rate: float, link: str, found: Summary) -> tuple[Cell, ...]:
    """One run, as SUMMARY names its columns."""
    return (
        name, rate, link, found.ttft_p50, found.ttft_p99, found.tpot_p99, found.tbt_p99,
        found.e2e_p99, found.goodput, found.hit_rate, found.link_bytes_per_s / 1e6,
        found.longest_wait, found.preemptions, found.slowdown_small, found.slowdown_medium,
        found.slowdown_large,
    )  # fmt: skip


SUMMARY_NOTE = (
    "Seconds; goodput: requests a second within both SLOs (TTFT: five times the mean time alone, "
    "TPOT: 150 ms); hit: arrivals whose adapter was resident; small, medium, large: mean time as a "
    "multiple of the time alone, by thirds of that."
)


def golden_table(checks: Sequence[Check]) -> Table:
    """Published and simulated side by side."""
    rows = tuple(
        (
            f"{one.golden.name}, {one.golden.num_adapters} adapters",
            one.golden.rate,
            one.golden.throughput,
            one.throughput,
            one.golden.e2e,
            one.e2e,
            one.golden.ttft,
            one.ttft,
        )
        for one in checks
    )
    return Table(
        name="golden",
        title="S-LoRA on an A10G: published, and simulated (mean of 3 seeds)",
        columns=(
            "setting", "req/s", "throughput", "simulated", "mean E2E", "simulated", "mean TTFT",
            "simulated",
        ),
        rows=rows,
    )  # fmt: skip


def median(found: Sequence[Summary]) -> Summary:
    """Of several seeds: the median of each figure."""
    middle = len(found) // 2
    parts: Mapping[str, Any] = {
        key: sorted(getattr(one, key) for one in found)[middle] for key in asdict(found[0])
    }
    return Summary(**parts)
