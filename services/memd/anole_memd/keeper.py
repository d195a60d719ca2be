"""Keeper: has regions plugged and unplugged, and tries again what failed, for a while."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from opentelemetry.trace import NoOpTracer, SpanKind, StatusCode, Tracer

from anole_memd.backend import Backend
from anole_memd.books import Books
from anole_memd.core.ledger import Region
from anole_memd.core.records import RegionAdded, RegionMoved
from anole_memd.core.region import RegionSpec, RegionState, Trouble
from anole_memd.errors import (
    BackendError,
    BackendSilent,
    JournalFull,
    LeaseRefused,
    NoRegion,
    OverBudget,
    PartialUnplug,
    RegionBusy,
)
from anole_shared.ids import RegionId
from anole_shared.telemetry import Attribute, SpanName
from anole_shared.units import region_bytes, round_up

log = logging.getLogger(__name__)

MAX_TRIES = 12
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Retry:
    num_tries: int
    due_s: float


class Keeper:
    """Carries out on the backend what becomes of regions, and keeps the books of it."""

    def __init__(self, books: Books, backend: Backend, tracer: Tracer, *, timeout_s: float) -> None:
        """timeout_s: for each call of the backend."""
        self.backend = backend
        self.count_unplug: Callable[[str], None] = lambda _: None
        """Told the outcome of each unplug: done, or the trouble."""
        self._books = books
        # What is made on demand is plugged with its lease, in no time: no span of its own.
        self._tracer = NoOpTracer() if backend.slots is None else tracer
        self._timeout_s = timeout_s
        self._retries: dict[RegionId, _Retry] = {}
        self._busy: set[RegionId] = set()

    def is_given_up(self, region_id: RegionId) -> bool:
        """Whether it is stuck, and is not tried again unless somebody asks."""
        retry = self._retries.get(region_id)
        return retry is not None and retry.num_tries >= MAX_TRIES

    @property
    def num_given_up(self) -> int:
        """So many are."""
        return sum(map(self.is_given_up, list(self._retries)))

    def size_of(self, num_bytes: int) -> int:
        """The size of the region that would be plugged for so many bytes; 0: there is none.

        Raises:
            OverBudget: all of this host's regions that are large enough are taken.
        """
        slots = self.backend.slots
        if slots is None:
            return round_up(region_bytes(num_bytes), self.backend.block_bytes)
        return self._slot(num_bytes, slots).num_bytes

    def _slot(self, num_bytes: int, slots: tuple[RegionSpec, ...]) -> RegionSpec:
        """The smallest absent one that holds so much."""
        ledger = self._books.ledger
        absent = [slot for slot in slots if ledger.region(slot.region_id) is None]
        large = [slot for slot in absent if slot.num_bytes >= num_bytes]
        if not large:
            raise OverBudget(
                f"none of this host's {len(slots)} regions of {self.backend.name} is both absent "
                f"and as large as {num_bytes} bytes: release one, or add larger ones"
            )
        fitting = [slot for slot in large if self.backend.is_there(slot)]
        if not fitting:
            raise OverBudget(
                f"none of the {len(large)} regions of {self.backend.name} that are absent and as "
                f"large as {num_bytes} bytes has memory yet: have the hypervisor plug it"
            )
        return min(fitting, key=lambda slot: slot.num_bytes)

    async def plug(self, num_bytes: int, name: str) -> Region:
        """A region that is free and holds so much; the caller has checked that there is room.

        Raises:
            LeaseRefused: there is none.
        """
        slots = self.backend.slots
        if slots is None:
            spec = RegionSpec(
                region_id=self._books.ledger.next_region_id(),
                num_bytes=self.size_of(num_bytes),
                name=name,
            )
        else:
            spec = self._slot(num_bytes, slots)
        added = RegionAdded(region_id=spec.region_id, num_bytes=spec.num_bytes, name=spec.name)
        # What is made on demand and has no holder goes with memd: no need to write it down first.
        (self._books.note if slots is None else self._books.commit)([added])
        with self._tracer.start_as_current_span(SpanName.PLUG, kind=SpanKind.INTERNAL) as span:
            span.set_attribute(Attribute.REGION_ID, spec.region_id)
            span.set_attribute(Attribute.REGION_BYTES, spec.num_bytes)
            try:
                plugged = await self.backend.plug(spec, timeout_s=self._timeout_s)
            except BackendError as fault:
                span.set_status(StatusCode.ERROR, str(fault))
                span.set_attribute(Attribute.ERROR_TYPE, type(fault).__name__)
                self._not_plugged(spec.region_id, fault)
                raise NoRegion(str(fault)) from fault
        free = RegionMoved(
            region_id=spec.region_id,
            state=RegionState.FREE,
            num_bytes=plugged.num_bytes,
            token=plugged.token,
        )
        self._books.note([free])
        region = self._books.ledger.region(spec.region_id)
        assert region is not None
        return region

    def _not_plugged(self, region_id: RegionId, fault: BackendError) -> None:
        if isinstance(fault, BackendSilent):
            self._stick(region_id, Trouble.SILENT, str(fault))
        else:
            self._books.note([RegionMoved(region_id=region_id, state=RegionState.ABSENT)])

    async def vacate(self, region_id: RegionId) -> None:
        """See to it that a vacated region is free again, or absent where regions are made anew."""
        if self.backend.slots is None:
            with suppress(BackendError):
                await self.unplug(region_id)
            return
        self._busy.add(region_id)
        try:
            is_released = await self.backend.is_released(region_id, timeout_s=self._timeout_s)
        except BackendSilent as fault:
            self._stick(region_id, Trouble.SILENT, str(fault))
            return
        finally:
            self._busy.discard(region_id)
        if is_released:
            self._retries.pop(region_id, None)
            self._books.note([RegionMoved(region_id=region_id, state=RegionState.FREE)])
        else:
            who = ", ".join(map(str, await self.backend.users(region_id))) or "unknown"
            self._stick(region_id, Trouble.BUSY, f"its pages are in use; seen in processes: {who}")

    async def unplug(self, region_id: RegionId, *, force: bool = False) -> int:
        """Give a free, vacated or stuck region back; how many bytes came.

        Raises:
            BackendError: it is stuck now, and is tried again by itself.
        """
        self._books.note([RegionMoved(region_id=region_id, state=RegionState.UNPLUGGING)])
        self._busy.add(region_id)
        with self._tracer.start_as_current_span(SpanName.UNPLUG, kind=SpanKind.INTERNAL) as span:
            span.set_attribute(Attribute.REGION_ID, region_id)
            try:
                num_bytes = await self.backend.unplug(
                    region_id, timeout_s=self._timeout_s, force=force
                )
            except BackendError as fault:
                trouble = _trouble_of(fault)
                span.set_status(StatusCode.ERROR, str(fault))
                span.set_attribute(Attribute.ERROR_TYPE, type(fault).__name__)
                left = fault.left_bytes if isinstance(fault, PartialUnplug) else None
                self._stick(region_id, trouble, str(fault), left)
                raise
            finally:
                self._busy.discard(region_id)
            span.set_attribute(Attribute.REGION_BYTES, num_bytes)
        self._retries.pop(region_id, None)
        self._books.note([RegionMoved(region_id=region_id, state=RegionState.ABSENT)])
        self.count_unplug("done")
        return num_bytes

    def _stick(
        self, region_id: RegionId, trouble: Trouble, detail: str, left_bytes: int | None = None
    ) -> None:
        self.count_unplug(trouble)
        last = self._retries.get(region_id)
        if last is None or last.num_tries < MAX_TRIES:
            log.warning("%s is stuck (%s): %s", region_id, trouble, detail)
        self._books.note(
            [
                RegionMoved(
                    region_id=region_id,
                    state=RegionState.STUCK,
                    trouble=trouble,
                    detail=detail,
                    num_bytes=left_bytes,
                )
            ]
        )
        self._retries.setdefault(region_id, _Retry(0, 0.0))

    async def retry(self, now: float) -> None:
        """Try what is stuck once more, where it is due; pauses double from half a second."""
        ledger = self._books.ledger
        stuck = [r for r in ledger.regions if r.state is RegionState.STUCK]
        for region in stuck:
            if ledger.region(region.region_id) is not region:
                continue  # it has changed while another one was tried
            retry = self._retries.setdefault(region.region_id, _Retry(0, 0.0))
            if retry.num_tries >= MAX_TRIES or retry.due_s > now:
                continue
            if region.region_id in self._busy:
                continue
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**retry.num_tries)
            self._retries[region.region_id] = _Retry(retry.num_tries + 1, now + pause_s)
            await self._try_again(region.region_id)
        known = {region.region_id for region in stuck}
        for region_id in self._retries.keys() - known:
            del self._retries[region_id]

    async def _try_again(self, region_id: RegionId) -> None:
        try:
            await self.unplug(region_id)
        except BackendError:
            if self.is_given_up(region_id):
                what = "%s is given up after %d tries: `anole memd unplug %s` is one more"
                log.warning(what, region_id, MAX_TRIES, region_id)
        else:
            log.info("%s is given back after all", region_id)

    async def follow_request(self, *, is_shrinking: bool) -> None:
        """Plug or unplug regions of fixed sizes, so that as much is plugged as was requested.

        Only what is free is unplugged; a region that would lead past the request is not plugged.
        """
        slots = self.backend.slots
        if slots is None:
            return
        ledger = self._books.ledger
        if is_shrinking:
            await self._shrink()
            return
        for slot in slots:
            room = ledger.requested_bytes - ledger.sizes.plugged
            is_absent = ledger.region(slot.region_id) is None
            if is_absent and slot.num_bytes <= room and self.backend.is_there(slot):
                try:
                    await self.plug(slot.num_bytes, slot.name)
                except (LeaseRefused, JournalFull) as fault:
                    log.warning("%s is not plugged: %s", slot.region_id, fault)
                    return

    async def _shrink(self) -> None:
        ledger = self._books.ledger
        for region in list(ledger.free_regions()):
            if ledger.region(region.region_id) is not region:
                continue  # it was leased while another one was unplugged
            if ledger.sizes.plugged - region.num_bytes >= ledger.requested_bytes:
                with suppress(BackendError):
                    await self.unplug(region.region_id)


def _trouble_of(fault: BackendError) -> Trouble:
    match fault:
        case RegionBusy():
            return Trouble.BUSY
        case PartialUnplug():
            return Trouble.PARTIAL
        case BackendSilent():
            return Trouble.SILENT
        case _:
            return Trouble.REFUSED
