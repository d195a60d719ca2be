"""Time as a dependency: the only module that reads the machine's clocks."""

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time to a shell, which passes it on to its core as an argument."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; only differences mean something."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, comparable between hosts as far as their clocks agree."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()
