"""How fast waiting requests go, as far as the recent past tells."""

from collections import deque

_WINDOW = 64
_UNKNOWN_S = 5.0
_LONGEST_S = 60.0


class DrainRate:
    """Ends of requests per second over the last ends: for the advice when to try again."""

    def __init__(self) -> None:
        self._ends_s: deque[float] = deque(maxlen=_WINDOW)

    def note_end(self, now: float) -> None:
        self._ends_s.append(now)

    def wait_s(self, num_requests: int, now: float) -> float:
        """Seconds until so many requests will have ended: whole ones, between 1 and 60."""
        if len(self._ends_s) < 2:  # noqa: PLR2004
            return _UNKNOWN_S
        elapsed_s = max(now - self._ends_s[0], 1e-3)
        return float(round(min(max(num_requests * elapsed_s / len(self._ends_s), 1), _LONGEST_S)))
