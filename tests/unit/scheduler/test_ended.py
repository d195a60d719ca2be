"""What is remembered of requests that have ended."""

import pytest

from anole_scheduler.core.ended import EndedRequests


@pytest.mark.parametrize(("attempt", "covered"), [(0, True), (1, True), (2, False)])
def test_an_ended_attempt_covers_itself_and_the_older_ones(attempt: int, *, covered: bool) -> None:
    ended = EndedRequests(4)
    ended.add_unknown("r1", 1)
    ended.add_unknown("r1", 0)
    assert ended.covers("r1", attempt) == covered


def test_the_oldest_end_is_forgotten_beyond_the_limit() -> None:
    ended = EndedRequests(2)
    ended.add_unknown("r1", 0)
    ended.add_unknown("r2", 0)
    ended.add_unknown("r1", 1)
    ended.add_unknown("r3", 0)
    assert len(ended) == 2
    assert "r1" in ended
    assert "r2" not in ended
    assert not ended.covers("r2", 0)
