"""Each moment of a step counts for one part, and watching leaves nothing behind."""

from bench.profile import PARTS, Stopwatch, watching


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def whole(self) -> None:
        self.clock.now += 1
        self.part()
        self.clock.now += 2
        self.part()

    def part(self) -> None:
        self.clock.now += 10


def test_time_in_a_part_does_not_count_for_what_calls_it() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with watching(watch, {"whole": ((Machine, "whole"),), "part": ((Machine, "part"),)}):
        Machine(clock).whole()
    assert watch.take() == {"whole": 3.0, "part": 20.0}
    assert watch.take() == {}


def test_a_part_may_keep_the_time_of_what_it_calls() -> None:
    clock = Clock()
    watch = Stopwatch(clock, keeps={"whole"})
    with watching(watch, {"whole": ((Machine, "whole"),), "part": ((Machine, "part"),)}):
        Machine(clock).whole()
        Machine(clock).part()
    assert watch.take() == {"whole": 23.0, "part": 10.0}


def test_time_outside_of_all_parts_counts_for_none() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    with watching(watch, {"part": ((Machine, "part"),)}):
        Machine(clock).whole()
    assert watch.take() == {"part": 20.0}


def test_what_was_watched_is_as_before() -> None:
    before = Machine.part
    with watching(Stopwatch(), {"part": ((Machine, "part"),)}):
        assert Machine.part is not before
    assert Machine.part is before


def test_every_part_of_a_step_is_still_where_it_is_looked_for() -> None:
    assert all(callable(getattr(owner, name)) for found in PARTS.values() for owner, name in found)
