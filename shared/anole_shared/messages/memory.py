"""What a host's memd and those who use it say to each other over memd's unix socket.

One SOCK_SEQPACKET datagram holds one message as JSON; LeaseGranted carries the region's memfd as
SCM_RIGHTS ancillary data, where the region is one. Each message to memd is answered by one. A
connection that watches, or has reported its demand, is besides sent some unasked.

A lease belongs to the process that asked for it. It ends when it is released, when that process
ends, or, where a time was agreed, unless it is renewed in time.
"""

from dataclasses import dataclass, field
from typing import Literal

from anole_shared.ids import LeaseId, RegionId


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
    ttl_s: float | None = None
    """The lease ends after so many seconds unless it is renewed; None: with its holder only."""
    wait_s: float = 0.0
    """How long to wait for room, in order of arrival; 0: not at all."""
    type: Literal["lease.requested"] = "lease.requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted:
    """memd -> worker: the region is yours; its descriptor comes with this datagram."""

    lease_id: LeaseId
    num_bytes: int
    """At least what was asked for: regions are rounded up to whole huge pages."""
    region_id: RegionId | None = None
    node: int | None = None
    """The NUMA node that the region is, to bind memory to; None where it is a descriptor."""
    cpuset: str | None = None
    """A cgroup that is bound to that node, to join; None where the holder binds itself."""
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
    of_others: bool = False
    """Also where another process holds it: an operator's will."""
    force: bool = False
    """Take the region's pages away even from whoever uses them still."""
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
    """memd -> whoever asked: the sizes of this host's memory, in bytes."""

    total_bytes: int
    """What there may be at most."""
    leased_bytes: int
    """What is under a lease."""
    num_leases: int
    requested_bytes: int = 0
    """What there should be now."""
    plugged_bytes: int = 0
    """What regions have, whoever uses them, stuck ones too."""
    num_stuck: int = 0
    """Regions whose memory could not be given back, or of which nobody knows."""
    backend: str = ""
    pressure: str = "none"
    """How short of memory the host is: none, some or full."""
    last_revocation: str = ""
    """What came of the last time that memory was asked back, for people to read."""
    type: Literal["memory.status_reported"] = "memory.status_reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRenewed:
    """holder -> memd: I still use the region; answered by itself, or by LeaseDenied."""

    lease_id: LeaseId
    ttl_s: float | None = None
    """From now on; None: until the holder ends."""
    of_others: bool = False
    """Also where another process holds it: an operator's will."""
    type: Literal["lease.renewed"] = "lease.renewed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionReport:
    """A region, and its lease if it has one, for people to read."""

    region_id: RegionId
    num_bytes: int
    resident_bytes: int
    state: str
    detail: str = ""
    """Why it is stuck, where it is."""
    lease_id: LeaseId | None = None
    pid: int | None = None
    label: str = ""
    lease_state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsRequested:
    """anyone -> memd: which regions are there?"""

    skip: int = 0
    """How many of them have been told already: an answer holds a limited number."""
    type: Literal["regions.requested"] = "regions.requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionsReported:
    """memd -> whoever asked."""

    regions: tuple[RegionReport, ...]
    has_more: bool
    type: Literal["regions.reported"] = "regions.reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlugRequested:
    """operator -> memd: plug so many bytes; answered by RegionsReported or MemoryRefused."""

    num_bytes: int
    type: Literal["region.plug_requested"] = "region.plug_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnplugRequested:
    """operator -> memd: give a region back; answered by RegionUnplugged or MemoryRefused."""

    region_id: RegionId
    force: bool = False
    """Take its pages away even from whoever uses them still, where the backend can."""
    type: Literal["region.unplug_requested"] = "region.unplug_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionUnplugged:
    """memd -> operator: so many bytes came back."""

    region_id: RegionId
    num_bytes: int
    type: Literal["region.unplugged"] = "region.unplugged"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRefused:
    """memd -> whoever asked for something else than a lease: no, and why."""

    reason: str
    type: Literal["memory.refused"] = "memory.refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequested:
    """anyone -> memd: tell me of every change; a MemoryStatusReported now and after each.

    Whoever does not read what it is sent is cut off.
    """

    type: Literal["memory.watch_requested"] = "memory.watch_requested"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandReported:
    """holder -> memd: how much of what I hold I need; answered by MemoryStatusReported.

    From then on memd may ask this process for memory back on this connection.
    """

    used_bytes: int
    """Of its leases: what was used lately. The rest can be had again from elsewhere."""
    wanted_bytes: int = 0
    """What it could use besides, and was refused."""
    type: Literal["memory.demand_reported"] = "memory.demand_reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRevoked:
    """memd -> holder, unasked: release so many bytes of your leases, whichever you like."""

    revocation_id: int
    num_bytes: int
    deadline_s: float
    """Seconds from now."""
    type: Literal["lease.revoked"] = "lease.revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationAnswered:
    """holder -> memd: what I have released for it; answered by MemoryStatusReported."""

    revocation_id: int
    num_bytes: int
    reason: str = ""
    """Why not all of it, where it is not."""
    type: Literal["lease.revocation_answered"] = "lease.revocation_answered"


MemoryMessage = (
    LeaseRequested
    | LeaseGranted
    | LeaseDenied
    | LeaseReleased
    | LeaseRenewed
    | LeaseEnded
    | MemoryStatusRequested
    | MemoryStatusReported
    | RegionsRequested
    | RegionsReported
    | PlugRequested
    | UnplugRequested
    | RegionUnplugged
    | MemoryRefused
    | WatchRequested
    | DemandReported
    | LeaseRevoked
    | RevocationAnswered
)
"""The tagged union of what memd's socket carries; `type` is the tag."""

MAX_DATAGRAM_BYTES = 64 * 1024
"""Longer datagrams are refused."""
