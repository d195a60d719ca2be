"""Ways are compared in turns, and what slows both down cancels out."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from bench.interleaving import Times, in_turns


class Clock:
    """Goes on only by what a call costs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def costing(self, seconds: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            self.now += next(seconds)

        return call


def test_the_first_round_is_not_counted() -> None:
    clock = Clock()
    times = in_turns({"a": clock.costing(iter([100.0, 1.0, 2.0]))}, 2, clock=clock)
    assert times["a"].seconds == (1.0, 2.0)


def test_each_round_does_all_and_begins_with_another_one() -> None:
    done: list[str] = []
    calls = {name: (lambda name=name: done.append(name)) for name in "abc"}
    in_turns(calls, 2, clock=Clock())
    assert done == list("abc" + "bca" + "cab")


def test_each_call_is_charged_with_its_own_time() -> None:
    clock = Clock()
    calls = {
        "a": clock.costing(itertools.repeat(1.0)),
        "b": clock.costing(itertools.repeat(3.0)),
    }
    times = in_turns(calls, 3, clock=clock)
    assert (times["a"].median_s, times["b"].median_s) == (1.0, 3.0)


def test_a_machine_that_slows_down_does_not_change_the_ratio() -> None:
    slow = Times((3.0, 30.0, 3.3))
    base = Times((1.0, 10.0, 1.1))
    assert slow.ratio_to(base) == pytest.approx(3.0)


def test_the_spread_is_between_the_quartiles() -> None:
    assert Times((1.0, 2.0, 3.0, 4.0, 100.0)).spread == pytest.approx(2 / 3)
    assert Times((1.0,)).spread == 0.0
