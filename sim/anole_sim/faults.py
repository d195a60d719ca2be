"""What goes wrong, by seed: messages that are lost, late or doubled, and workers that die."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from anole_scheduler.core.events import RequestArrived
from anole_shared.ids import WorkerId


@dataclass(slots=True, kw_only=True)
class Faults:
    """How often; shares of messages, and seconds."""

    seed: int
    lost: float = 0.01
    late: float = 0.05
    doubled: float = 0.05
    latest_s: float = 2.0
    """How late a late message is at most."""
    hop_s: float = 0.001
    """How long every message takes."""
    every_s: float = 60.0
    """Mean time between two deaths of workers; 0: none dies."""
    restart_s: float = 5.0
    random: Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = Random(f"faults {self.seed}")

    def deaths(self, duration_s: float) -> list[float]:
        """When a worker dies."""
        times: list[float] = []
        now = 0.0
        while self.every_s > 0:
            now += self.random.expovariate(1 / self.every_s)
            if now > duration_s:
                break
            times.append(now)
        return times

    def victim(self, workers: Sequence[WorkerId]) -> WorkerId:
        """Which one."""
        return self.random.choice(workers)

    def says_goodbye(self) -> bool:
        """Whether its connection tells that it has ended; else it falls silent."""
        return self.random.random() < 0.5  # noqa: PLR2004


class Channel:
    """Carries messages between processes as a broker does on a bad day.

    A client's request is sent until the broker has confirmed it, so that one may be late or
    doubled, but is not lost.
    """

    def __init__(self, faults: Faults, later: Callable[..., None]) -> None:
        self._faults = faults
        self._later = later

    def send(self, now: float, deliver: Callable[..., None], message: object) -> None:
        """Deliver a message: once, twice, later, or never."""
        faults, random = self._faults, self._faults.random
        if random.random() < faults.lost and not isinstance(message, RequestArrived):
            return
        copies = 2 if random.random() < faults.doubled else 1
        for _ in range(copies):
            delay_s = faults.hop_s
            if random.random() < faults.late:
                delay_s += random.random() * faults.latest_s
            self._later(now + delay_s, deliver, message)
