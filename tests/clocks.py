"""Clocks for tests."""


class HandClock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.time_s = 1000.0

    def now(self) -> float:
        return self.time_s

    def wall(self) -> float:
        return self.time_s
