"""docs/simulation.md is filled from the simulator's results and from the benchmark's."""

import sys
from pathlib import Path

import orjson
import pytest

from anole_sim import report
from bench import simulation
from bench.table import Column, Table


def test_tables_of_both_kinds_of_results_stand_between_their_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, one, two = (tmp_path / name for name in ("page.md", "one.json", "two.json"))
    page.write_text("<!-- bench sim -->\n<!-- /bench -->\n<!-- bench fit -->\n<!-- /bench -->\n")
    of_sim = report.Table(name="sim", title="S", columns=("x",), rows=((1.0,),), note="")
    of_bench = Table(name="fit", title="F", columns=(Column(key="y", title="y"),), rows=({"y": 2},))
    one.write_bytes(orjson.dumps({"tables": [of_sim.to_json()]}))
    two.write_bytes(orjson.dumps({"sections": {"fit": {"tables": [of_bench.to_json()]}}}))
    monkeypatch.setattr(simulation, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["bench.simulation", str(one), str(two)])
    assert simulation.main() == 0
    assert "**S**" in page.read_text()
    assert "**F**" in page.read_text()
