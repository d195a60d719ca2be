"""Desk: takes one message of a connection at a time and says what is answered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from anole_memd.backend import Handle, MemfdHandle, NodeHandle
from anole_memd.books import Books
from anole_memd.core.lease import Holder
from anole_memd.core.ledger import Region
from anole_memd.core.region import RegionState
from anole_memd.errors import BackendError, LeaseRefused
from anole_memd.keeper import Keeper
from anole_memd.lessor import Granted, Lessor
from anole_memd.revoker import Listener, Revoker
from anole_shared.clock import Clock
from anole_shared.errors import MessageError
from anole_shared.ids import LeaseId, RegionId
from anole_shared.messages import (
    DemandReported,
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    MemoryMessage,
    MemoryRefused,
    MemoryStatusReported,
    MemoryStatusRequested,
    PlugRequested,
    RegionReport,
    RegionsReported,
    RegionsRequested,
    RegionUnplugged,
    RevocationAnswered,
    UnplugRequested,
    WatchRequested,
)

_REGIONS_A_MESSAGE = 64
_MAX_DETAIL_CHARS = 200


class Caller(Listener, Protocol):
    """A connection, as the desk sees it."""

    @property
    def holder(self) -> Holder:
        """The process at the other end."""
        ...

    lease_ids: set[LeaseId]
    """The leases that were granted or renewed on it."""
    is_watching: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back to the connection that asked."""

    message: MemoryMessage
    handle: Handle | None = None
    """What comes with a grant; whoever sends the answer closes it then."""

    @property
    def descriptor(self) -> int | None:
        """What is passed on as SCM_RIGHTS."""
        return self.handle.descriptor if isinstance(self.handle, MemfdHandle) else None


class Desk:
    """Every message that memd is sent ends here."""

    def __init__(
        self,
        *,
        books: Books,
        keeper: Keeper,
        lessor: Lessor,
        revoker: Revoker,
        clock: Clock,
        pressure: Callable[[], str],
    ) -> None:
        self._books = books
        self._keeper = keeper
        self._lessor = lessor
        self._revoker = revoker
        self._clock = clock
        self._pressure = pressure

    async def handle(self, caller: Caller, message: MemoryMessage) -> Answer:
        """Answer one message.

        Raises:
            MessageError: it is one that only memd sends.
        """
        try:
            return await self._handled(caller, message)
        except LeaseRefused as refusal:
            denies = isinstance(message, LeaseRequested | LeaseRenewed)
            reason = str(refusal)
            return Answer(message=(LeaseDenied if denies else MemoryRefused)(reason=reason))
        except BackendError as fault:
            return Answer(message=MemoryRefused(reason=str(fault)))

    async def _handled(self, caller: Caller, message: MemoryMessage) -> Answer:
        now = self._clock.now()
        match message:
            case LeaseRequested():
                return self._granted(caller, await self._lessor.grant(caller.holder, message, now))
            case LeaseRenewed(lease_id=lease_id):
                holder = None if message.of_others else caller.holder
                self._lessor.renew(holder, lease_id, message.ttl_s, now)
                caller.lease_ids.add(lease_id)
                return Answer(message=message)
            case LeaseReleased():
                return await self._released(caller, message)
            case DemandReported():
                self._revoker.reported(caller.holder, caller, message)
            case RevocationAnswered(revocation_id=number, reason=reason):
                self._revoker.answered(caller.holder, number, reason)
            case WatchRequested():
                caller.is_watching = True
            case MemoryStatusRequested():
                pass
            case _:
                return await self._handled_for_operators(message)
        return Answer(message=self.status())

    async def _handled_for_operators(self, message: MemoryMessage) -> Answer:
        match message:
            case RegionsRequested(skip=skip):
                return Answer(message=await self._regions(skip))
            case PlugRequested(num_bytes=num_bytes):
                region = await self._plugged(num_bytes)
                report = await self._report(region)
                return Answer(message=RegionsReported(regions=(report,), has_more=False))
            case UnplugRequested(region_id=region_id, force=force):
                num_bytes = await self._unplugged(region_id, force=force)
                return Answer(message=RegionUnplugged(region_id=region_id, num_bytes=num_bytes))
            case _:
                raise MessageError(f"{message.type} is a message that only memd sends")

    async def _released(self, caller: Caller, message: LeaseReleased) -> Answer:
        lease = self._books.ledger.lease(message.lease_id)
        caller.lease_ids.discard(message.lease_id)
        if lease is not None and (message.of_others or lease.holder == caller.holder):
            await self._lessor.release(message.lease_id, force=message.force)
        return Answer(message=LeaseEnded(lease_id=message.lease_id))

    @staticmethod
    def _granted(caller: Caller, granted: Granted) -> Answer:
        caller.lease_ids.add(granted.lease.lease_id)
        node = granted.handle if isinstance(granted.handle, NodeHandle) else None
        message = LeaseGranted(
            lease_id=granted.lease.lease_id,
            num_bytes=granted.num_bytes,
            region_id=granted.lease.region_id,
            node=node.node if node else None,
            cpuset=str(node.cpuset) if node and node.cpuset else None,
        )
        return Answer(message=message, handle=granted.handle)

    def status(self) -> MemoryStatusReported:
        """How memory stands now."""
        ledger = self._books.ledger
        sizes = ledger.sizes
        return MemoryStatusReported(
            total_bytes=sizes.total,
            requested_bytes=sizes.requested,
            plugged_bytes=sizes.plugged,
            leased_bytes=sizes.leased,
            num_leases=len(ledger.leases),
            num_stuck=sum(region.state is RegionState.STUCK for region in ledger.regions),
            backend=self._keeper.backend.name,
            pressure=self._pressure(),
            last_revocation=self._revoker.last[:_MAX_DETAIL_CHARS],
        )

    async def _plugged(self, num_bytes: int) -> Region:
        ledger = self._books.ledger
        if self._keeper.backend.slots is None:
            raise LeaseRefused(
                f"regions of {self._keeper.backend.name} are made when they are leased: there is "
                "nothing to plug ahead"
            )
        ledger.check_room_to_plug(self._keeper.size_of(num_bytes))
        return await self._keeper.plug(num_bytes, "plugged")

    async def _unplugged(self, region_id: RegionId, *, force: bool) -> int:
        region = self._books.ledger.region(region_id)
        if region is None:
            raise LeaseRefused(f"there is no region {region_id}: `anole memd list` shows them")
        if region.state is RegionState.LEASED:
            raise LeaseRefused(
                f"{region_id} is leased as {region.lease_id}: end its holder, or release the lease"
            )
        if region.state not in {RegionState.FREE, RegionState.STUCK}:
            raise LeaseRefused(f"{region_id} is {region.state}: wait for that to end")
        return await self._keeper.unplug(region_id, force=force)

    async def _regions(self, skip: int) -> RegionsReported:
        regions = self._books.ledger.regions[max(0, skip) :]
        reports = [await self._report(region) for region in regions[:_REGIONS_A_MESSAGE]]
        has_more = len(regions) > _REGIONS_A_MESSAGE
        return RegionsReported(regions=tuple(reports), has_more=has_more)

    async def _report(self, region: Region) -> RegionReport:
        lease = self._books.ledger.lease(region.lease_id) if region.lease_id else None
        detail = f"{region.trouble}: {region.detail}" if region.trouble else region.detail
        if self._keeper.is_given_up(region.region_id):
            detail = f"given up (`anole memd unplug {region.region_id}` tries again), {detail}"
        return RegionReport(
            region_id=region.region_id,
            num_bytes=region.num_bytes,
            resident_bytes=await self._keeper.backend.resident_bytes(region.region_id),
            state=region.state,
            detail=detail[:_MAX_DETAIL_CHARS],
            lease_id=region.lease_id,
            pid=lease.holder.pid if lease else None,
            label=lease.label if lease else region.spec.name,
            lease_state=lease.state if lease else "",
        )
