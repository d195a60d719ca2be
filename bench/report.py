"""Puts results into docs/performance.md: its tables and plots come out of the files of a run.

    python -m bench.report bench/results/2026-01-01-some-machine-2-cores.json

The page's own words stay. A table stands between the marks `<!-- bench NAME -->` and
`<!-- /bench -->`, and each is filled from the last of the given files that has it; results of
bench.peers can be given too (its tables are called peers and peers-stall).
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from anole_shared.units import GiB
from bench import plots, table
from bench.machine import SOURCE
from bench.peers import report as peers
from bench.section import progress
from bench.table import Column, Table

PEERS = "peers"
PAGE = SOURCE / "docs" / "performance.md"
_BLOCK = re.compile(r"(<!-- bench ([\w-]+) -->\n).*?(<!-- /bench -->)", re.DOTALL)

Result = Mapping[str, Any]


def fill(page: str, blocks: Mapping[str, str]) -> str:
    """The page with these blocks between their marks; marks without a block keep what they have."""

    def filled(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        return f"{begin}{blocks[name]}\n{end}" if name in blocks else found[0]

    return _BLOCK.sub(filled, page)


def marks(page: str) -> frozenset[str]:
    """The names of the blocks that the page shows."""
    return frozenset(found[2] for found in _BLOCK.finditer(page))


def tables(results: Iterable[Result]) -> dict[str, Table]:
    """All tables by name; a later result's take the place of an earlier one's."""
    found: dict[str, Table] = {}
    for result in results:
        for section in result.get("sections", {}).values():
            found |= {one.name: one for one in map(table.from_json, section["tables"])}
        if "summary" in result:
            rows = tuple(result["summary"])
            found[PEERS] = Table(name=PEERS, title="", columns=(), rows=rows)
    return found


def blocks(results: Sequence[Result]) -> dict[str, str]:
    """What stands between the marks, by name."""
    found = {name: one.markdown() for name, one in tables(results).items() if name != PEERS}
    for result in results:
        if "guest" in result:
            found["reclaim-machine"] = guest_machine(result)
        elif "sections" in result:
            found["machine"] = machine(result)
        if "summary" in result:
            found[PEERS] = peers.table(result["summary"]).strip()
        if "stall" in result:
            found["peers-stall"] = _stalls(result["stall"]).markdown()
    return found


def machine(result: Result) -> str:
    """What it ran on, and how busy that was."""
    on, pages = result["machine"], result["machine"]["huge_pages"]
    memory = f"{on['memory_bytes'] / GiB:.0f} GiB"
    loads = [load for section in result["sections"].values() for load in section["load_average"]]
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    return f"""\
- {on["cpu"]}, {on["cores"]} cores ({", ".join(on["features"])}), {memory};
  Linux {on["kernel"]}, huge pages: {pages["enabled"]}, of shared memory: {pages["shmem_enabled"]}
- Python {on["python"]}, {versions}; commit {result["commit"]}
- {result["model"]}, one torch thread, {result["rounds"]} rounds, begun {result["began"]}
- load average between {min(loads):.1f} and {max(loads):.1f}; the benchmark itself makes 1 to 2"""


def guest_machine(result: Result) -> str:
    """What a guest ran on, and how busy that was."""
    on, guest, loads = result["machine"], result["guest"], result["load_average"]
    return f"""\
- {on["cpu"]}, {on["cores"]} cores, Linux {on["kernel"]}; the guest: Linux {guest["kernel"]}, run by
  {guest["accelerator"]} of QEMU; commit {result["commit"]}; begun {result["began"]}
- load average between {min(loads):.1f} and {max(loads):.1f}; the benchmark itself makes 1"""


def _stalls(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        name="peers-stall",
        title="The longest gap of a running stream while adapters load, over HTTP",
        columns=(
            Column(key="peer", title="peer"),
            Column(key="loads", title="loads"),
            Column(key="gap_p50_ms", title="median gap ms", form=".0f"),
            Column(key="gap_max_without_loads_ms", title="longest without loads ms", form=".0f"),
            Column(key="gap_max_ms", title="longest ms", form=".0f"),
            Column(key="longest_to_median", title="longest / median", form=".1f"),
            Column(key="cold_ttft_p50_ms", title="TTFT with a load ms", form=".0f"),
        ),
        rows=tuple(rows),
    )


def main() -> int:
    """Fill the page, or say what is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE", help="a run's results")
    parser.add_argument("--page", type=Path, default=PAGE, help="what is filled (%(default)s)")
    given = parser.parse_args()
    try:
        results = [orjson.loads(path.read_bytes()) for path in given.results]
        page = given.page.read_text()
    except (OSError, ValueError) as fault:
        print(f"bench.report: {fault}", file=sys.stderr)
        return 1
    found = blocks(results)
    given.page.write_text(fill(page, found))
    for name in sorted(marks(page) - found.keys()):
        progress(f"{name}: in none of these files; the page keeps what it has")
    for name in sorted(found.keys() - marks(page)):
        progress(f"{name}: the page has no mark for it")
    for path in plots.draw(tables(results), given.page.parent / "img"):
        progress(f"drawn: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
