"""SlidingMax: the largest of the values of the last seconds."""

from collections import deque


class SlidingMax:
    """Holds only values that can still become the largest: those before a larger one cannot."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._falling: deque[tuple[float, int]] = deque()

    def add(self, now: float, value: int) -> None:
        """A value of this moment; times must not go back."""
        while self._falling and self._falling[-1][1] <= value:
            self._falling.pop()
        self._falling.append((now, value))
        while self._falling[0][0] < now - self._window_s:
            self._falling.popleft()

    @property
    def value(self) -> int:
        """The largest, once any was added."""
        return self._falling[0][1]
