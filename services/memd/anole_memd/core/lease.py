"""Lease: one holder's right to one region, and the states it goes through."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from anole_shared.ids import LeaseId, RegionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process of this boot."""

    pid: int
    """0 where this memd cannot see it: it lives in another PID namespace."""
    started: int
    """When it began, in clock ticks since boot; where it cannot be seen, its connection's number.
    A process id alone is used again."""


class LeaseState(StrEnum):
    """Where a lease is in its life."""

    HELD = "held"
    """Its holder may use the region."""
    DETACHED = "detached"
    """The same, but the connection it was granted on is gone; the process lives."""
    ENDED = "ended"


LEASE_TRANSITIONS: Mapping[LeaseState, frozenset[LeaseState]] = {
    LeaseState.HELD: frozenset({LeaseState.DETACHED, LeaseState.ENDED}),
    LeaseState.DETACHED: frozenset({LeaseState.HELD, LeaseState.ENDED}),
    LeaseState.ENDED: frozenset(),
}
"""Every legal change. A renewal makes a detached lease held again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A lease that stands."""

    lease_id: LeaseId
    region_id: RegionId
    holder: Holder
    label: str
    """What the holder calls itself, for people."""
    expires_s: float | None
    """When it ends unless it is renewed, on the clock of this boot; None: with its holder."""
    state: LeaseState = LeaseState.HELD
