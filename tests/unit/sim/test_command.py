"""`anole sim` from the outside."""

from pathlib import Path

import orjson
import pytest

from anole_cli.main import main
from anole_sim import paper
from anole_sim.paper import Study
from anole_sim.profile import A40_7B, PCIE
from anole_sim.simulate import Case
from anole_sim.systems import SYSTEMS
from anole_sim.throughput import highest_rate, keeps_ttft
from anole_sim.workload import Plan


def test_systems_are_compared_in_a_table_a_file_and_a_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, plot = tmp_path / "found.json", tmp_path / "plot.svg"
    flags = ["--rate", "6", "9", "--duration", "10", "--system", "slora", "anole"]
    assert main(["sim", *flags, "--json", str(found), "--plot", str(plot)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| slora |") == shown.count("| anole |") == 2
    (table,) = orjson.loads(found.read_bytes())["tables"]
    assert len(table["rows"]) == 4
    assert "<svg" in plot.read_text()


def test_the_same_command_writes_the_same_bytes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("one.json", "two.json")]
    for file in files:
        flags = ["--rate", "8", "--duration", "20", "--workers", "2", "--json", str(file)]
        assert main(["sim", *flags, "--system", "chameleon", "anole", "--popularity", "zipf"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_trace_that_is_not_there_is_said_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--trace", "nothing.csv"]) == 1
    assert "no trace 'nothing.csv'" in capsys.readouterr().err


def test_faults_and_checks_are_flags(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rate", "6", "--duration", "15", "--workers", "2", "--system", "anole"]
    assert main(["sim", *flags, "--faults", "--check"]) == 0
    assert "| anole |" in capsys.readouterr().out


def test_a_figure_of_the_papers_stands_beside_ours() -> None:
    study = Study(folder=None, seeds=1, duration_s=10.0, tell=lambda _: None)
    (table,) = paper.run(study, ["adapters"])
    assert [row[0] for row in table.rows] == [10, 50, 100, 150, 200, 500]


def test_the_load_at_the_slo_is_found_by_halving() -> None:
    plan = Plan(scale=1 / 6, duration_s=8.0)
    case = Case(system=SYSTEMS["anole"], plan=plan, profile=A40_7B.with_slots(8_000), link=PCIE)
    found = highest_rate(case, keeps_ttft, low=1.0, high=40.0, steps=3)
    assert 4.0 < found < 40.0
    assert highest_rate(case, keeps_ttft, low=1.0, high=2.0) == 2.0
    assert highest_rate(case, keeps_ttft, low=80.0, high=90.0) == 80.0
