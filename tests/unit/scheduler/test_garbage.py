"""How often Python looks for garbage."""

import gc

import pytest

from anole_scheduler import garbage


def test_while_it_serves_everything_is_looked_through_rarely_and_what_is_young_as_before() -> None:
    before = gc.get_threshold()
    with garbage.looked_for_rarely():
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] >= 100 * before[2]
    assert gc.get_threshold() == before


def test_the_thresholds_come_back_whatever_happens() -> None:
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), garbage.looked_for_rarely():
        raise RuntimeError
    assert gc.get_threshold() == before
