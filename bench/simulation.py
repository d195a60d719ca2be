r"""Puts the simulator's results into docs/simulation.md, as bench.report does for the benchmark's.

python -m bench.simulation bench/results/sim-golden.json bench/results/sim-paper.json \
    bench/results/<date>-fit-<machine>.json
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson

from anole_sim.report import Table
from bench import report
from bench.machine import SOURCE
from bench.report import fill

PAGE = SOURCE / "docs" / "simulation.md"


def table_of(data: dict[str, Any]) -> Table:
    """A table as `anole sim --json` has written it."""
    rows = tuple(tuple(row) for row in data["rows"])
    return Table(**{**data, "columns": tuple(data["columns"]), "rows": rows})


def main() -> int:
    """Fill the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.simulation", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE")
    given = parser.parse_args()
    results = [orjson.loads(path.read_bytes()) for path in given.results]
    found = [one for result in results for one in result.get("tables", ())]
    blocks = {one["name"]: table_of(one).markdown() for one in found}
    blocks |= {name: one.markdown() for name, one in report.tables(results).items()}
    PAGE.write_text(fill(PAGE.read_text(), blocks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
