"""Order by a deadline that grows with what a request costs."""

from anole_scheduler.core.pace import Pace
from anole_scheduler.core.policy import Key
from anole_scheduler.core.request import Progress


class VirtualDeadline:
    """First arrival + gamma x cost. Starves nobody: the key is fixed, and time goes on.

    cost is how long the request would keep a whole worker: the larger of its share of the running
    requests and its share of the memory, times how long it is expected to run. All three are learnt
    from what has ended, so that there is no constant of a machine or a trace; until something has
    ended the order is that of arrival.
    """

    def __init__(self, gamma: float, pace: Pace, shares: "Shares") -> None:
        self._gamma = gamma
        self._pace = pace
        self._shares = shares

    def key(self, progress: Progress, now: float) -> Key:  # noqa: ARG002
        cost_s = self._pace.duration_s(progress) * self._shares.of(progress)
        return progress.first_arrived_s + self._gamma * cost_s


class Shares:
    """What part of a worker a request takes."""

    def __init__(self) -> None:
        self._concurrency = 1.0
        self._bytes_per_token = 0.0
        self._memory_bytes = 1

    def learn(self, num_running: int, bytes_per_token: float, memory_bytes: int) -> None:
        """A request was started at a worker that runs so many now."""
        self._concurrency += _STEP * (max(num_running, 1) - self._concurrency)
        self._bytes_per_token, self._memory_bytes = bytes_per_token, memory_bytes

    def of(self, progress: Progress) -> float:
        """From 0 to 1."""
        num_bytes = progress.predicted_len * self._bytes_per_token
        return min(max(1 / self._concurrency, num_bytes / self._memory_bytes), 1.0)


_STEP = 0.02
"""Weight of the newest observation: about the last 50 count."""
