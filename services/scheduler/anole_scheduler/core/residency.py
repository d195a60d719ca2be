"""Where an adapter's weights are, seen from the scheduler."""

from dataclasses import dataclass
from enum import auto

from anole_scheduler.core.transition import State, check


class Residency(State):
    """What is believed of one adapter on one worker."""

    ABSENT = auto()
    HOST = auto()
    """In the worker's host's memory: quicker to load than from disk."""
    LOADING = auto()
    """The worker loads it, or was just given a reason to."""
    RESIDENT = auto()


TRANSITIONS: dict[Residency, frozenset[Residency]] = {
    Residency.ABSENT: frozenset({Residency.HOST, Residency.LOADING, Residency.RESIDENT}),
    Residency.HOST: frozenset({Residency.LOADING, Residency.RESIDENT, Residency.ABSENT}),
    Residency.LOADING: frozenset({Residency.RESIDENT, Residency.HOST, Residency.ABSENT}),
    Residency.RESIDENT: frozenset({Residency.HOST, Residency.ABSENT}),
}
"""Every legal change. ABSENT becomes RESIDENT where a report is the first that tells of it, HOST
where the host's copy was made without this worker's device."""


@dataclass(slots=True, kw_only=True)
class Presence:
    """One adapter on one worker."""

    residency: Residency = Residency.ABSENT
    since_s: float

    def move_to(self, residency: Residency, now: float) -> None:
        """Change state; raises InvalidTransition where the table does not list it."""
        check(TRANSITIONS, self.residency, residency)
        self.residency = residency
        self.since_s = now

    def observe(self, residency: Residency, now: float) -> None:
        """Believe what the worker says, also where a message between is missing."""
        if residency is self.residency:
            return
        if residency not in TRANSITIONS[self.residency]:
            self.move_to(Residency.ABSENT, now)
        self.move_to(residency, now)
