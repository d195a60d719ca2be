"""What a worker and its host's memd say to each other over memd's unix socket.

One SOCK_SEQPACKET datagram holds one message as JSON; LeaseGranted carries the region's memfd as
SCM_RIGHTS ancillary data. A lease ends when it is released or when its holder's connection ends.
"""

from dataclasses import dataclass, field
from typing import Literal

from anole_shared.ids import LeaseId


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequested:
    """worker -> memd: I need a region; answered by LeaseGranted or LeaseDenied."""

    num_bytes: int
    holder: str
    """Who asks, for people to read: a worker id."""
    purpose: str
    """What for, for people to read: an adapter id."""
    headers: dict[str, str] = field(default_factory=dict)
    """W3C trace context of the load that needs the region."""
    type: Literal["lease.requested"] = "lease.requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted:
    """memd -> worker: the region is yours; its descriptor comes with this datagram."""

    lease_id: LeaseId
    num_bytes: int
    """At least what was asked for: regions are rounded up to whole huge pages."""
    type: Literal["lease.granted"] = "lease.granted"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseDenied:
    """memd -> worker: no region, and why."""

    reason: str
    type: Literal["lease.denied"] = "lease.denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReleased:
    """worker -> memd: I have unmapped the region; answered by LeaseEnded."""

    lease_id: LeaseId
    type: Literal["lease.released"] = "lease.released"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseEnded:
    """memd -> worker: the lease is gone (also where it never was)."""

    lease_id: LeaseId
    type: Literal["lease.ended"] = "lease.ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatusRequested:
    """anyone -> memd: how much is there, how much is leased?"""

    type: Literal["memory.status_requested"] = "memory.status_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStatusReported:
    """memd -> whoever asked."""

    total_bytes: int
    leased_bytes: int
    num_leases: int
    type: Literal["memory.status_reported"] = "memory.status_reported"


MemoryMessage = (
    LeaseRequested
    | LeaseGranted
    | LeaseDenied
    | LeaseReleased
    | LeaseEnded
    | MemoryStatusRequested
    | MemoryStatusReported
)
"""The tagged union of what memd's socket carries; `type` is the tag."""

MAX_DATAGRAM_BYTES = 64 * 1024
"""Longer datagrams are refused."""
