"""What the journal holds: every change of the ledger, as one small record each.

The ledger decides records and applies them; applying the same records in the same order makes the
same ledger again, which is how a memd that was killed finds its own.
"""

from dataclasses import dataclass
from typing import Literal

from anole_memd.core.lease import Holder, LeaseState
from anole_memd.core.region import RegionState, Trouble
from anole_shared.ids import LeaseId, RegionId


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionAdded:
    """A region is about to be plugged."""

    region_id: RegionId
    num_bytes: int
    name: str
    type: Literal["region.added"] = "region.added"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionMoved:
    """A region changed its state; one that is absent is forgotten."""

    region_id: RegionId
    state: RegionState
    num_bytes: int | None = None
    """What it has now, where that has changed."""
    token: str | None = None
    """What its backend finds it by, once that is known."""
    trouble: Trouble | None = None
    """Why it is stuck."""
    detail: str = ""
    type: Literal["region.moved"] = "region.moved"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseOpened:
    """A free region was leased."""

    lease_id: LeaseId
    region_id: RegionId
    holder: Holder
    label: str
    expires_s: float | None = None
    type: Literal["lease.opened"] = "lease.opened"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseMoved:
    """A lease changed its state or its end; one that has ended is forgotten."""

    lease_id: LeaseId
    state: LeaseState
    expires_s: float | None = None
    type: Literal["lease.moved"] = "lease.moved"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRequested:
    """How many bytes there should be now, between the floor and the total."""

    num_bytes: int
    type: Literal["size.requested"] = "size.requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """The last numbers that were given to a region and to a lease: none is given twice."""

    region: int
    lease: int
    type: Literal["numbered"] = "numbered"


Record = RegionAdded | RegionMoved | LeaseOpened | LeaseMoved | SizeRequested | Numbered
"""The tagged union of the journal's lines; `type` is the tag."""
