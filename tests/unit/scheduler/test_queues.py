"""The line of waiting requests."""

from anole_scheduler.core.queues import Line
from tests.unit.scheduler.playbook import waiting


def names(line: Line) -> list[str]:
    return [progress.request.request_id for progress in line]


def test_an_empty_line_has_no_head() -> None:
    line = Line()
    assert line.head is None
    assert line.first(3) == []
    assert not line


def test_the_smallest_key_is_next_and_of_equal_ones_the_smallest_id() -> None:
    line = Line()
    for name, key in (("long", 90), ("short", 10), ("middle", 50), ("also", 10)):
        line.push(key, waiting(name))
        line.check_invariants()
    assert names(line) == ["also", "short", "middle", "long"]
    assert [progress.request.request_id for progress in line.first(2)] == ["also", "short"]


def test_a_request_can_be_taken_out_of_the_middle() -> None:
    line = Line()
    for number in range(5):
        line.push(number, waiting(f"r{number}"))
    assert not line.remove("r2")
    assert line.remove("r0")
    line.check_invariants()
    assert names(line) == ["r1", "r3", "r4"]
    assert "r2" not in line
    assert line.key("r3") == 3
