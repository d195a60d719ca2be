"""A page is filled from results, and keeps its own words."""

from collections.abc import Mapping
from typing import Any

from bench import machine, plots, report
from bench.table import Column, Table

PAGE = """\
# Title
<!-- bench one -->
old
<!-- /bench -->
Words of a person.
<!-- bench two -->
<!-- /bench -->
"""


def result(name: str, value: float) -> Mapping[str, Any]:
    column = Column(key="v", title="v", form=".1f")
    table = Table(name=name, title="T", columns=(column,), rows=({"v": value},))
    section = {"tables": [table.to_json()], "seconds": 1.0, "load_average": [0.5, 1.5]}
    return {
        "machine": machine.describe(),
        "commit": "abc",
        "model": "some-model",
        "rounds": 5,
        "quick": False,
        "began": "2026-01-01T00:00:00+00:00",
        "sections": {"some": section},
    }


def test_a_block_stands_between_its_marks_and_the_rest_stays() -> None:
    filled = report.fill(PAGE, {"one": "new", "three": "unseen"})
    assert filled == PAGE.replace("old", "new")
    assert report.fill(filled, {"one": "new"}) == filled


def test_the_marks_of_a_page_are_known() -> None:
    assert report.marks(PAGE) == {"one", "two"}


def test_of_two_results_the_later_one_counts() -> None:
    found = report.blocks([result("one", 1.0), result("two", 2.0), result("one", 3.0)])
    assert "| 3.0 |" in found["one"]
    assert "| 2.0 |" in found["two"]


def test_the_machine_is_told_with_how_busy_it_was() -> None:
    told = report.blocks([result("one", 1.0)])["machine"]
    assert "load average between 0.5 and 1.5" in told
    assert "some-model, one torch thread, 5 rounds" in told


def test_the_page_of_this_project_has_a_mark_for_every_section() -> None:
    shown = report.marks(report.PAGE.read_text())
    assert {"machine", "limits", "steps", "prefill", "loads", "held", "stalls"} <= shown


def test_the_plots_are_the_same_for_the_same_figures(tmp_path: Any) -> None:
    columns = tuple(Column(key=key, title=key) for key in ("adapters", "lru", "gdsf"))
    row = {"adapters": 100, "popularity": "zipf", "share": 0.2, "lru": 0.5, "gdsf": 0.6}
    tables = {
        name: Table(name=name, title="", columns=columns, rows=(row,))
        for name in ("policies-hits", "policies-waits")
    }
    first, second = (tmp_path / name for name in "ab")
    assert [path.name for path in plots.draw(tables, first)] == ["policies.svg"]
    assert [path.name for path in plots.draw(tables, second)] == ["policies.svg"]
    assert (first / "policies.svg").read_bytes() == (second / "policies.svg").read_bytes()


def test_results_of_other_servers_fill_their_block_and_have_a_plot(tmp_path: Any) -> None:
    one = dict.fromkeys(
        ("ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "itl_max_ms"), 1.0
    )
    one |= {"cpu_ms_per_token": 1.0, "memory_mib": 1.0, "errors": 0, "cut": False}
    rows = [
        one
        | {"peer": peer, "variant": "", "streams": streams, "adapters": "8 adapters"}
        | {"tokens_per_s": rate, "anole_over_peer": 8 / rate}
        for peer, rate in (("anole", 8.0), ("vllm", 2.0))
        for streams in (1, 8)
    ]
    results = [{"summary": rows, "machine": {}}]
    assert "| vllm |" in report.blocks(results)["peers"]
    assert [path.name for path in plots.draw(report.tables(results), tmp_path)] == ["peers.svg"]
