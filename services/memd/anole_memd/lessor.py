"""Lessor: grants, renews and ends leases, and knows whose holder has ended."""

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass

from opentelemetry.trace import SpanKind, StatusCode, Tracer

from anole_memd.backend import Handle
from anole_memd.backends import processes
from anole_memd.books import Books
from anole_memd.core.lease import Holder, Lease, LeaseState
from anole_memd.core.ledger import Region
from anole_memd.core.records import LeaseMoved, LeaseOpened
from anole_memd.core.region import RegionState, region_name
from anole_memd.errors import (
    BackendError,
    BackendSilent,
    BadRegionSize,
    LeaseRefused,
    NoRegion,
    OverBudget,
)
from anole_memd.keeper import Keeper
from anole_shared.ids import LeaseId
from anole_shared.messages import LeaseRequested
from anole_shared.telemetry import Attribute, SpanName, context_of

log = logging.getLogger(__name__)

_MAX_TTL_S = 24 * 3600.0
_MAX_WAIT_S = 600.0
_SWEEP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A lease, and what its holder needs to use it."""

    lease: Lease
    num_bytes: int
    handle: Handle


class Lessor:
    """Leases regions to processes. A lease ends with its process, not with its connection."""

    def __init__(self, books: Books, keeper: Keeper, tracer: Tracer) -> None:
        self._books = books
        self._keeper = keeper
        self._tracer = tracer
        self._queue = asyncio.Lock()
        """Whoever waits for room; it is taken in order of arrival."""
        self._changed = asyncio.Event()

    def something_changed(self) -> None:
        """There may be room now for who waits."""
        self._changed.set()

    async def grant(self, holder: Holder, asked: LeaseRequested, now: float) -> Granted:
        """Lease a region.

        Raises:
            LeaseRefused: there is none for it now, or ever; the message says why.
        """
        label, purpose = region_name(asked.holder), region_name(asked.purpose)
        with self._tracer.start_as_current_span(
            SpanName.LEASE, context=context_of(asked.headers), kind=SpanKind.SERVER
        ) as span:
            try:
                granted = await self._granted(holder, asked, label, purpose, now)
            except LeaseRefused as refusal:
                span.set_attribute(Attribute.ERROR_TYPE, type(refusal).__name__)
                span.set_status(StatusCode.ERROR, str(refusal))
                log.warning("%s gets no region for %s: %s", label, purpose, refusal)
                raise
            span.set_attribute(Attribute.LEASE_BYTES, granted.num_bytes)
        lease_id = granted.lease.lease_id
        log.info("%s: %d bytes to %s for %s", lease_id, granted.num_bytes, label, purpose)
        return granted

    async def _granted(
        self, holder: Holder, asked: LeaseRequested, label: str, purpose: str, now: float
    ) -> Granted:
        """At once, or when there is room: whoever waits is served in order of arrival.

        Who does not wait is not held up by those who do.
        """
        if not asked.wait_s > 0:  # no number (NaN) is no wait
            return await self._grant(holder, asked, label, purpose, now)
        wait_s = min(asked.wait_s, _MAX_WAIT_S)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        refusal = OverBudget(f"others have been waiting for {wait_s:.1f} s before this")
        try:
            async with asyncio.timeout(wait_s) as limit, self._queue:
                while True:
                    self._changed.clear()
                    # What the backend has begun is seen to its end: only waiting is cut short.
                    ends_s = limit.when()
                    limit.reschedule(None)
                    waited_s = loop.time() - began_s
                    try:
                        return await self._grant(holder, asked, label, purpose, now + waited_s)
                    except OverBudget as full:
                        refusal = full
                    limit.reschedule(ends_s)
                    await self._changed.wait()
                    if not processes.is_alive(holder.pid, holder.started):
                        raise refusal
        except TimeoutError:
            raise OverBudget(f"{refusal} (waited {wait_s:.1f} s)") from None

    async def _grant(
        self, holder: Holder, asked: LeaseRequested, label: str, purpose: str, now: float
    ) -> Granted:
        expires_s = None if asked.ttl_s is None else now + _checked(asked.ttl_s)
        region = await self._free_region(holder, asked.num_bytes, purpose)
        try:
            handle = self._keeper.backend.handle(region.region_id)
        except BackendError as fault:
            await self._give_up(region)
            raise NoRegion(str(fault)) from fault
        lease_id = self._books.ledger.next_lease_id()
        opened = LeaseOpened(
            lease_id=lease_id,
            region_id=region.region_id,
            holder=holder,
            label=label,
            expires_s=expires_s,
        )
        try:
            self._books.commit([opened])
        except LeaseRefused:
            handle.close()
            await self._give_up(region)
            raise
        lease = self._books.ledger.lease(lease_id)
        assert lease is not None
        return Granted(lease=lease, num_bytes=region.num_bytes, handle=handle)

    async def _free_region(self, holder: Holder, num_bytes: int, purpose: str) -> Region:
        ledger = self._books.ledger
        ledger.check_size(num_bytes)
        ledger.check_leases(holder)
        region = None if self._keeper.backend.slots is None else ledger.free_region(num_bytes)
        if region is None:
            ledger.check_room_to_plug(self._keeper.size_of(num_bytes))
            region = await self._keeper.plug(num_bytes, purpose)
        else:
            ledger.check_room_to_lease(region)
        return region

    async def _give_up(self, region: Region) -> None:
        """A region that could not be leased: regions made on demand are of no use to others."""
        if self._keeper.backend.slots is None:
            await self._keeper.unplug(region.region_id)

    def renew(
        self, holder: Holder | None, lease_id: LeaseId, ttl_s: float | None, now: float
    ) -> None:
        """Move a lease's end; its holder has a connection again. holder: None for anybody's lease.

        Raises:
            LeaseRefused: the process holds no such lease.
        """
        lease = self._books.ledger.lease(lease_id)
        if lease is None or holder not in {None, lease.holder}:
            raise NoRegion(
                f"there is no lease {lease_id}: `anole memd list` shows them"
                if holder is None
                else f"this process holds no lease {lease_id}: lease anew"
            )
        expires_s = None if ttl_s is None else now + _checked(ttl_s)
        state = lease.state if holder is None else LeaseState.HELD
        self._books.commit([LeaseMoved(lease_id=lease_id, state=state, expires_s=expires_s)])

    async def release(self, lease_id: LeaseId, *, force: bool = False) -> None:
        """End a lease, if it stands, and give its region back.

        Raises:
            BackendError: force was of no use.
        """
        lease = self._books.ledger.lease(lease_id)
        if lease is not None:
            await self._end(lease, "released")
        if not force or lease is None:
            return
        region = self._books.ledger.region(lease.region_id)
        if region is not None and region.state is RegionState.STUCK:
            await self._keeper.unplug(region.region_id, force=True)

    async def holder_ended(self, holder: Holder) -> None:
        """End every lease of a process that has ended."""
        for lease in self._books.ledger.leases_of(holder):
            await self._end(lease, "its holder has ended")

    async def detach(self, holder: Holder, lease_ids: set[LeaseId]) -> None:
        """A connection is gone: its leases end where nobody uses their regions any more.

        The others stay as long as their process: the memory is in use, whatever its holder says.
        """
        for lease in self._books.ledger.leases_of(holder):
            if lease.lease_id not in lease_ids:
                continue
            if holder.pid == 0:
                await self._end(lease, "its holder is gone")
            elif lease.state is LeaseState.HELD:
                self._books.note(
                    [
                        LeaseMoved(
                            lease_id=lease.lease_id,
                            state=LeaseState.DETACHED,
                            expires_s=lease.expires_s,
                        )
                    ]
                )
        await self._sweep(holder)

    async def sweep(self, now: float) -> None:
        """End leases whose time has run out, and detached ones whose region nobody uses."""
        for lease in self._books.ledger.expired(now):
            if self._books.ledger.lease(lease.lease_id) is lease:  # else renewed meanwhile
                await self._end(lease, "not renewed in time")
        detached: defaultdict[Holder, int] = defaultdict(int)
        for lease in self._books.ledger.leases:
            detached[lease.holder] += lease.state is LeaseState.DETACHED
        for holder, count in detached.items():
            if not processes.is_alive(holder.pid, holder.started):
                await self.holder_ended(holder)
            elif count:
                await self._sweep(holder)
        # Nobody tells memd that a hypervisor has plugged what somebody may wait for.
        self._changed.set()

    async def _sweep(self, holder: Holder) -> None:
        backend = self._keeper.backend
        for lease in self._books.ledger.leases_of(holder):
            if lease.state is not LeaseState.DETACHED:
                continue
            try:
                is_released = await backend.is_released(lease.region_id, timeout_s=_SWEEP_TIMEOUT_S)
                # A holder that is back meanwhile has not given it up.
                if is_released and self._books.ledger.lease(lease.lease_id) is lease:
                    await self._end(lease, "given up")
            except BackendSilent as fault:
                log.warning("%s: %s", lease.region_id, fault)

    async def _end(self, lease: Lease, reason: str) -> None:
        if self._books.ledger.lease(lease.lease_id) is None:
            return  # ended meanwhile
        region = self._books.ledger.region(lease.region_id)
        assert region is not None
        self._books.note(self._books.ledger.ending(lease))
        log.info("%s: %d bytes back, %s", lease.lease_id, region.num_bytes, reason)
        await self._keeper.vacate(lease.region_id)


def _checked(ttl_s: float) -> float:
    if not 0 < ttl_s <= _MAX_TTL_S:
        raise BadRegionSize(f"a lease of {ttl_s} s was asked for: ask for 0 to {_MAX_TTL_S:.0f} s")
    return ttl_s
