"""Region: memory that is plugged, leased and given back as one, and the states it goes through."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from anole_shared.ids import RegionId

_MAX_NAME_CHARS = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


def region_name(purpose: str) -> str:
    """What purpose becomes in a log line and in /proc: short, and of plain characters only."""
    return _UNUSUAL.sub("_", purpose[:_MAX_NAME_CHARS]) or "region"


class RegionState(StrEnum):
    """Where a region is in its life. Only ABSENT takes no memory of the host."""

    ABSENT = "absent"
    """It has no memory."""
    PLUGGING = "plugging"
    """The backend was asked for its memory and has not answered."""
    FREE = "free"
    """It is plugged; nobody holds it and nothing is in it."""
    LEASED = "leased"
    """One lease is over it."""
    VACATED = "vacated"
    """Its lease is over; that no page of it is in use any more has not been seen yet."""
    UNPLUGGING = "unplugging"
    """The backend was asked to give its memory back and has not answered."""
    STUCK = "stuck"
    """A call has failed; its Trouble says how. It is tried again, a bounded number of times."""


TRANSITIONS: Mapping[RegionState, frozenset[RegionState]] = {
    RegionState.ABSENT: frozenset({RegionState.PLUGGING}),
    RegionState.PLUGGING: frozenset({RegionState.FREE, RegionState.ABSENT, RegionState.STUCK}),
    RegionState.FREE: frozenset({RegionState.LEASED, RegionState.UNPLUGGING}),
    RegionState.LEASED: frozenset({RegionState.VACATED}),
    RegionState.VACATED: frozenset(
        {RegionState.FREE, RegionState.UNPLUGGING, RegionState.STUCK, RegionState.ABSENT}
    ),
    RegionState.UNPLUGGING: frozenset({RegionState.ABSENT, RegionState.STUCK}),
    RegionState.STUCK: frozenset({RegionState.VACATED, RegionState.UNPLUGGING, RegionState.ABSENT}),
}
"""Every legal change. A stuck region is vacated again where it is to be looked at once more."""


class Trouble(StrEnum):
    """Why a region is stuck; each is what a backend's error of the same name says."""

    BUSY = "busy"
    """Somebody still uses pages of it (EBUSY on offlining, a leaked mapping)."""
    PARTIAL = "partial"
    """Some of it came back and some did not."""
    SILENT = "silent"
    """The kernel or the hypervisor did not answer in time; what it has done is not known."""
    REFUSED = "refused"
    """The kernel or the hypervisor said no, for a reason that waiting may or may not mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSpec:
    """A region as a backend knows it."""

    region_id: RegionId
    num_bytes: int
    """Its size: a whole number of the backend's blocks."""
    name: str = "region"
    """For people: see region_name()."""
