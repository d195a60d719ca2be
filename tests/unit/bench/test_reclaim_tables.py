from typing import Any

import pytest

from anole_shared.units import MiB
from bench.guest.reclaim_tables import tables


def sample(way: str, run: int, ms: float, **more: Any) -> dict[str, Any]:
    return {
        "way": way,
        "run": run,
        "zeroing": "init_on_alloc=1",
        "wanted_bytes": 512 * MiB,
        "bytes": 512 * MiB,
        "ms": ms,
        "waited_ms": 0.0,
        "cpu_ms": 10,
        "pages_migrated": 3,
    } | more


def test_ratios_are_of_pairs_of_one_run() -> None:
    samples = [
        *(sample("stock", run, ms) for run, ms in enumerate((1000.0, 2000.0, 9000.0))),
        # In another order, as after an interruption.
        *(sample("segregated", run, ms) for run, ms in ((2, 300.0), (0, 100.0), (1, 100.0))),
    ]
    (row,) = tables(samples, [])[0].rows
    assert (row["ratio"], row["ratio_least"], row["runs"]) == (20.0, 10.0, 3)
    assert (row["stock_ms"], row["segregated_ms"]) == (2000.0, 100.0)
    assert (row["mib"], row["paper_stock_ms"], row["paper_ms"]) == (512, 617, None)


def test_what_was_waited_for_is_taken_off_one_column_only() -> None:
    samples = [
        sample("stock", 1, 1000.0, waited_ms=500.0, bytes=256 * MiB),
        sample("segregated", 1, 100.0, waited_ms=90.0),
    ]
    (row,) = tables(samples, [])[0].rows
    assert (row["ratio"], row["ratio_ran"]) == (10.0, 50.0)
    assert (row["stock_share"], row["segregated_share"]) == (0.5, 1.0)


def test_a_size_of_which_one_way_is_missing_yet_is_left_out() -> None:
    assert tables([sample("stock", 1, 1000.0)], [])[0].rows == ()


def test_occupancies_and_neighbours_have_tables_of_their_own() -> None:
    samples = [
        sample(way, 1, ms, occupancy=0.88) for way, ms in (("stock", 900.0), ("segregated", 90.0))
    ]
    neighbours = [
        {
            "way": way,
            "slowdown": slowdown,
            "noise": 0.02,
            "computing": 0.0,
            "ms": 100.0,
            "lost_ms": 1.0,
        }
        for way, slowdown in (("stock", 0.5), ("stock", 0.7), ("segregated", 0.01))
    ]
    sizes, occupancy, beside = tables(samples, neighbours)
    assert sizes.rows == ()
    assert occupancy.rows[0]["occupancy"] == pytest.approx(0.88)
    assert [(row["way"], row["times"], row["most"]) for row in beside.rows] == [
        ("stock", 2, 0.7),
        ("memd", 1, 0.01),
    ]
