"""Ledger: every region and every lease of this host, and whether there is room for more.

Nothing is changed but by apply(): the other methods look, refuse, or say which records would do
what is asked. So the shell can write those to disk before they are true.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from anole_memd.core.lease import LEASE_TRANSITIONS, Holder, Lease, LeaseState
from anole_memd.core.records import (
    LeaseMoved,
    LeaseOpened,
    Numbered,
    Record,
    RegionAdded,
    RegionMoved,
    SizeRequested,
)
from anole_memd.core.region import TRANSITIONS, RegionSpec, RegionState, Trouble
from anole_memd.errors import BadRecord, BadRegionSize, OverBudget, TooManyLeases
from anole_shared.ids import LeaseId, RegionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region that is not absent."""

    spec: RegionSpec
    state: RegionState = RegionState.PLUGGING
    token: str = ""
    lease_id: LeaseId | None = None
    trouble: Trouble | None = None
    detail: str = ""

    @property
    def region_id(self) -> RegionId:
        return self.spec.region_id

    @property
    def num_bytes(self) -> int:
        return self.spec.num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The four sizes of a host's memory, in bytes."""

    total: int
    """What there may be at most."""
    requested: int
    """What there should be now."""
    plugged: int
    """What all regions have that are not absent, stuck ones too."""
    leased: int
    """What is under a lease."""


class Ledger:
    """All regions that are not absent and all leases that stand; never more than the total."""

    def __init__(self, *, total_bytes: int, max_leases_per_holder: int) -> None:
        self.total_bytes = total_bytes
        self.requested_bytes = total_bytes
        self.is_pressed = False
        """Whether the host is short of memory: then not even the total is granted, but only what
        was requested."""
        self._max_leases_per_holder = max_leases_per_holder
        self._regions: dict[RegionId, Region] = {}
        self._leases: dict[LeaseId, Lease] = {}
        self._by_holder: dict[Holder, dict[LeaseId, None]] = {}
        self._plugged_bytes = 0
        self._leased_bytes = 0
        self._last = Numbered(region=0, lease=0)

    @property
    def sizes(self) -> Sizes:
        """What there is."""
        return Sizes(
            total=self.total_bytes,
            requested=self.requested_bytes,
            plugged=self._plugged_bytes,
            leased=self._leased_bytes,
        )

    @property
    def regions(self) -> tuple[Region, ...]:
        """Every region that is not absent, oldest first."""
        return tuple(self._regions.values())

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Every lease that stands, oldest first."""
        return tuple(self._leases.values())

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Every process that has a lease."""
        return tuple(self._by_holder)

    def region(self, region_id: RegionId) -> Region | None:
        """None: it is absent."""
        return self._regions.get(region_id)

    def lease(self, lease_id: LeaseId) -> Lease | None:
        """None: it never was, or has ended."""
        return self._leases.get(lease_id)

    def leases_of(self, holder: Holder) -> tuple[Lease, ...]:
        """The holder's leases, oldest first."""
        return tuple(self._leases[lease_id] for lease_id in self._by_holder.get(holder, ()))

    def leased_bytes_of(self, holder: Holder) -> int:
        """What the holder has under leases."""
        leases = self.leases_of(holder)
        return sum(self._regions[lease.region_id].num_bytes for lease in leases)

    def check_size(self, num_bytes: int) -> None:
        """Return if there can ever be a region of so many bytes; raises BadRegionSize."""
        if num_bytes <= 0:
            raise BadRegionSize(f"a region of {num_bytes} bytes was asked for: ask for at least 1")
        if num_bytes > self.total_bytes:
            raise BadRegionSize(
                f"a region of {num_bytes} bytes is more than memd's whole budget of "
                f"{self.total_bytes} bytes: raise ANOLE_MEMD_BUDGET_BYTES"
            )

    def check_leases(self, holder: Holder) -> None:
        """Return if the holder may have one more lease; raises TooManyLeases."""
        if len(self._by_holder.get(holder, ())) >= self._max_leases_per_holder:
            raise TooManyLeases(
                f"this process holds {self._max_leases_per_holder} leases, the most that one "
                "may: release some, or raise ANOLE_MEMD_MAX_LEASES_PER_CONNECTION"
            )

    def check_room_to_plug(self, num_bytes: int) -> None:
        """Return if so many bytes more may be plugged; raises OverBudget."""
        limit = self.requested_bytes if self.is_pressed else self.total_bytes
        free_bytes = max(0, limit - self._plugged_bytes)
        if num_bytes <= free_bytes:
            return
        if self.is_pressed:
            raise OverBudget(
                f"no room for a region of {num_bytes} bytes: the host is short of memory, so memd "
                f"keeps to {limit} bytes, of which {free_bytes} are free; release regions"
            )
        raise OverBudget(
            f"no room for a region of {num_bytes} bytes: {free_bytes} of memd's {limit} bytes are "
            "free; release regions, or raise ANOLE_MEMD_BUDGET_BYTES"
        )

    def check_room_to_lease(self, region: Region) -> None:
        """Return if a free region may be leased; raises OverBudget while the host is short."""
        if self.is_pressed and self._leased_bytes + region.num_bytes > self.requested_bytes:
            raise OverBudget(
                f"{region.region_id} is free, but the host is short of memory, so memd keeps to "
                f"{self.requested_bytes} bytes; release regions"
            )

    def next_region_id(self) -> RegionId:
        """An id that no region has had; taken once a region of that id is added."""
        return RegionId(f"region-{self._last.region + 1}")

    def next_lease_id(self) -> LeaseId:
        """An id that no lease has had; taken once a lease of that id is opened."""
        return LeaseId(f"lease-{self._last.lease + 1}")

    def free_region(self, num_bytes: int) -> Region | None:
        """The smallest free region that holds so much."""
        found = [r for r in self.free_regions() if r.num_bytes >= num_bytes]
        return min(found, key=lambda region: region.num_bytes, default=None)

    def free_regions(self) -> Iterator[Region]:
        """Those that are plugged and nobody's, newest first."""
        regions = reversed(self._regions.values())
        return (region for region in regions if region.state is RegionState.FREE)

    def ending(self, lease: Lease) -> tuple[Record, ...]:
        """The records that end a lease."""
        return (
            LeaseMoved(lease_id=lease.lease_id, state=LeaseState.ENDED),
            RegionMoved(region_id=lease.region_id, state=RegionState.VACATED),
        )

    def expired(self, now: float) -> tuple[Lease, ...]:
        """The leases whose time has run out."""
        return tuple(
            lease
            for lease in self._leases.values()
            if lease.expires_s is not None and lease.expires_s <= now
        )

    def snapshot(self) -> tuple[Record, ...]:
        """The shortest records that make this ledger out of an empty one."""
        records: list[Record] = [SizeRequested(num_bytes=self.requested_bytes)]
        for region in self._regions.values():
            spec = region.spec
            added = RegionAdded(region_id=spec.region_id, num_bytes=spec.num_bytes, name=spec.name)
            records += [added, *_path_to(region)]
        for lease in self._leases.values():
            records.append(
                LeaseOpened(
                    lease_id=lease.lease_id,
                    region_id=lease.region_id,
                    holder=lease.holder,
                    label=lease.label,
                    expires_s=lease.expires_s,
                )
            )
            if lease.state is LeaseState.DETACHED:
                records.append(
                    LeaseMoved(
                        lease_id=lease.lease_id, state=lease.state, expires_s=lease.expires_s
                    )
                )
        return (*records, self._last)

    def apply(self, records: Iterable[Record]) -> None:
        """Make these records true, in order.

        Raises:
            BadRecord: one that no ledger in this state can have decided.
        """
        for record in records:
            try:
                self._apply(record)
            except KeyError as fault:
                raise BadRecord(f"{record.type}: there is no {fault}") from fault

    def _apply(self, record: Record) -> None:
        match record:
            case RegionAdded():
                self._add(record)
            case RegionMoved():
                self._move(record)
            case LeaseOpened():
                self._open(record)
            case LeaseMoved():
                self._move_lease(record)
            case SizeRequested(num_bytes=num_bytes):
                self.requested_bytes = num_bytes
            case Numbered():
                self._last = record

    def _add(self, record: RegionAdded) -> None:
        if record.region_id in self._regions:
            raise BadRecord(f"{record.region_id} is there already")
        spec = RegionSpec(region_id=record.region_id, num_bytes=record.num_bytes, name=record.name)
        self._regions[record.region_id] = Region(spec=spec)
        self._plugged_bytes += spec.num_bytes
        number = max(self._last.region, _number_of(record.region_id))
        self._last = replace(self._last, region=number)

    def _move(self, record: RegionMoved) -> None:
        region = self._regions[record.region_id]
        if record.state not in TRANSITIONS[region.state]:
            raise BadRecord(f"{record.region_id} cannot go from {region.state} to {record.state}")
        if record.state is RegionState.LEASED or region.lease_id in self._leases:
            raise BadRecord(f"{record.region_id} goes to {record.state}, but not by its lease")
        self._plugged_bytes -= region.num_bytes
        if record.state is RegionState.ABSENT:
            del self._regions[record.region_id]
            return
        num_bytes = region.num_bytes if record.num_bytes is None else record.num_bytes
        self._plugged_bytes += num_bytes
        self._regions[record.region_id] = replace(
            region,
            spec=replace(region.spec, num_bytes=num_bytes),
            state=record.state,
            token=region.token if record.token is None else record.token,
            trouble=record.trouble,
            detail=record.detail,
            lease_id=None,
        )

    def _open(self, record: LeaseOpened) -> None:
        region = self._regions[record.region_id]
        if region.state is not RegionState.FREE or record.lease_id in self._leases:
            raise BadRecord(f"{record.lease_id}: {record.region_id} is {region.state}")
        self._regions[record.region_id] = replace(
            region, state=RegionState.LEASED, lease_id=record.lease_id
        )
        self._leases[record.lease_id] = Lease(
            lease_id=record.lease_id,
            region_id=record.region_id,
            holder=record.holder,
            label=record.label,
            expires_s=record.expires_s,
        )
        self._by_holder.setdefault(record.holder, {})[record.lease_id] = None
        self._leased_bytes += region.num_bytes
        number = max(self._last.lease, _number_of(record.lease_id))
        self._last = replace(self._last, lease=number)

    def _move_lease(self, record: LeaseMoved) -> None:
        lease = self._leases[record.lease_id]
        if record.state is not lease.state and record.state not in LEASE_TRANSITIONS[lease.state]:
            raise BadRecord(f"{record.lease_id} cannot go from {lease.state} to {record.state}")
        if record.state is not LeaseState.ENDED:
            self._leases[record.lease_id] = replace(
                lease, state=record.state, expires_s=record.expires_s
            )
            return
        del self._leases[record.lease_id]
        self._leased_bytes -= self._regions[lease.region_id].num_bytes
        held = self._by_holder[lease.holder]
        del held[record.lease_id]
        if not held:
            del self._by_holder[lease.holder]

    def check_invariants(self) -> None:
        """Assert what must hold between any two batches of records."""
        regions = self._regions.values()
        assert self._plugged_bytes == sum(region.num_bytes for region in regions)
        leased = [region for region in regions if region.state is RegionState.LEASED]
        assert self._leased_bytes == sum(region.num_bytes for region in leased)
        assert {region.lease_id for region in leased} == set(self._leases)
        assert all(region.lease_id is None for region in regions if region not in leased)
        for lease in self._leases.values():
            assert self._regions[lease.region_id].lease_id == lease.lease_id
            assert lease.state is not LeaseState.ENDED
        held = {lease_id for leases in self._by_holder.values() for lease_id in leases}
        assert held == set(self._leases)
        assert all(self._by_holder.values())


def _path_to(region: Region) -> Iterator[RegionMoved]:
    """The legal moves from being plugged to where the region is (a lease is opened on top)."""
    state, free = region.state, RegionState.FREE
    if state is RegionState.PLUGGING:
        return
    if state is RegionState.STUCK:
        yield _moved(region, state)
        return
    yield replace(_moved(region, free), trouble=None, detail="")
    if state is RegionState.UNPLUGGING:
        yield _moved(region, state)
    if state is RegionState.VACATED:
        stuck = replace(_moved(region, RegionState.STUCK), trouble=Trouble.BUSY)
        yield from (_moved(region, RegionState.UNPLUGGING), stuck, _moved(region, state))


def _moved(region: Region, state: RegionState) -> RegionMoved:
    return RegionMoved(
        region_id=region.region_id,
        state=state,
        token=region.token,
        trouble=region.trouble,
        detail=region.detail,
    )


def _number_of(some_id: str) -> int:
    number = some_id.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0
