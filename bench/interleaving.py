"""Compares ways to do one thing on a machine that others use too: in turns, by CPU time."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Times:
    """How long each round of one way took, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, as a share of the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / self.median_s

    def ratio_to(self, other: "Times") -> float:
        """The median over the rounds of this one's time to the other's in the same round.

        What slows the machine down for longer than a round meets both alike and cancels out.
        """
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(own / others for own, others in pairs)


def in_turns(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    clock: Callable[[], float] = time.process_time,
    rotate: bool = True,
) -> dict[str, Times]:
    """Do all of them once each round, and time each; a first round is not counted.

    clock: CPU time of this process by default, which waiting for a core does not count to.
    rotate: each round begins with another one, so that none always follows the same one.
    """
    names: Sequence[str] = list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names) if rotate else 0
        for name in (*names[first:], *names[:first]):
            begin = clock()
            calls[name]()
            seconds = clock() - begin
            if number > 0:
                found[name].append(seconds)
    return {name: Times(tuple(seconds)) for name, seconds in found.items()}
