"""Tables survive being kept, and show each value as its column says."""

import pytest

from bench.table import Column, Table, from_json

COLUMNS = (
    Column(key="what", title="case"),
    Column(key="ms", title="ms", form=".1f"),
    Column(key="faster", title="faster", form=".2f", unit="x"),
)
ROWS = (
    {"what": "one", "ms": 1.25, "faster": 2.0, "unseen": 7},
    {"what": "two", "ms": 10, "faster": None, "unseen": 8},
)


def make_table(**fields: object) -> Table:
    return Table(**{"name": "t", "title": "Title", "columns": COLUMNS, "rows": ROWS, **fields})


def test_numbers_stand_to_the_right_and_are_formatted() -> None:
    assert make_table().markdown().splitlines() == [
        "**Title**",
        "",
        "| case | ms | faster |",
        "| --- | ---: | ---: |",
        "| one | 1.2 | 2.00x |",
        "| two | 10.0 | - |",
    ]


def test_the_note_stands_behind_the_table() -> None:
    assert make_table(note="Mind this.").markdown().endswith("| two | 10.0 | - |\n\nMind this.")


def test_what_was_kept_is_shown_alike() -> None:
    table = make_table(note="Mind this.")
    assert from_json(table.to_json()).markdown() == table.markdown()


def test_yes_and_no_are_no_numbers() -> None:
    column = Column(key="was", title="was", form=".1f")
    assert [column.cell(True), column.cell(False)] == ["yes", "no"]


def test_a_row_without_one_of_the_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="table t: a row lacks faster, ms"):
        make_table(rows=({"what": "one"},))
