import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from anole_memd.errors import RegionRefused
from anole_shared.errors import MessageError
from anole_shared.ids import LeaseId
from anole_shared.messages import (
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    MemoryRefused,
    MemoryStatusReported,
    MemoryStatusRequested,
    PlugRequested,
    RegionReport,
    RegionsReported,
    RegionsRequested,
    RegionUnplugged,
    UnplugRequested,
    WatchRequested,
)
from anole_shared.telemetry import Telemetry, headers_of
from anole_shared.units import HUGE_PAGE_BYTES
from tests.unit.memd.books import ALICE, BOB, REGION_BYTES, Caller, House, SlotBackend, ask, house
from tests.unit.memd.books import opened as books_at


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def telemetry(spans: InMemorySpanExporter) -> Iterator[Telemetry]:
    telemetry = Telemetry("memd", exporter=spans)
    yield telemetry
    telemetry.shutdown()


@pytest.fixture
async def memd(tmp_path: Path, telemetry: Telemetry) -> AsyncIterator[House]:
    made = house(books_at(tmp_path / "journal"), tracer=telemetry.tracer)
    yield made
    made.books.close()
    await made.backend.close()


@pytest.fixture
async def slots(tmp_path: Path) -> AsyncIterator[House]:
    made = house(books_at(tmp_path / "journal", 3 * REGION_BYTES), SlotBackend())
    yield made
    made.books.close()


async def granted(memd: House, caller: Caller, num_bytes: int = HUGE_PAGE_BYTES) -> LeaseGranted:
    answer = await memd.desk.handle(caller, ask(num_bytes))
    assert isinstance(answer.message, LeaseGranted)
    if answer.handle is not None:
        answer.handle.close()
    return answer.message


async def sizes(memd: House) -> tuple[int, int]:
    report = (await memd.desk.handle(Caller(BOB), MemoryStatusRequested())).message
    assert isinstance(report, MemoryStatusReported)
    memd.books.ledger.check_invariants()
    return report.leased_bytes, report.num_leases


async def regions(memd: House) -> tuple[RegionReport, ...]:
    report = (await memd.desk.handle(Caller(BOB), RegionsRequested())).message
    assert isinstance(report, RegionsReported)
    return report.regions


async def test_a_grant_comes_with_a_descriptor_of_that_size(memd: House) -> None:
    answer = await memd.desk.handle(Caller(), ask(2 * HUGE_PAGE_BYTES - 1))
    assert isinstance(answer.message, LeaseGranted)
    assert answer.handle is not None
    assert answer.message.num_bytes == 2 * HUGE_PAGE_BYTES
    assert answer.descriptor is not None
    assert os.fstat(answer.descriptor).st_size == 2 * HUGE_PAGE_BYTES
    assert await sizes(memd) == (2 * HUGE_PAGE_BYTES, 1)
    answer.handle.close()


async def test_a_release_closes_the_descriptor(memd: House) -> None:
    before, caller = num_descriptors(), Caller()
    lease = await granted(memd, caller)
    assert num_descriptors() == before + 1
    answer = await memd.desk.handle(caller, LeaseReleased(lease_id=lease.lease_id))
    assert answer.message == LeaseEnded(lease_id=lease.lease_id)
    assert num_descriptors() == before
    assert await sizes(memd) == (0, 0)


async def test_anothers_lease_is_released_only_by_somebody_who_means_to(memd: House) -> None:
    lease = await granted(memd, Caller(ALICE))
    for of_others, left in ((False, (HUGE_PAGE_BYTES, 1)), (True, (0, 0))):
        release = LeaseReleased(lease_id=lease.lease_id, of_others=of_others)
        answer = await memd.desk.handle(Caller(BOB), release)
        assert answer.message == LeaseEnded(lease_id=lease.lease_id)
        assert await sizes(memd) == left


async def test_a_lease_that_never_was_is_said_to_have_ended(memd: House) -> None:
    lease_id = LeaseId("lease-of-an-earlier-memd")
    answer = await memd.desk.handle(Caller(), LeaseReleased(lease_id=lease_id))
    assert answer.message == LeaseEnded(lease_id=lease_id)


async def test_a_released_region_that_is_still_open_is_stuck_and_says_so(memd: House) -> None:
    caller = Caller()
    answer = await memd.desk.handle(caller, ask())
    assert isinstance(answer.message, LeaseGranted)
    assert answer.handle is not None
    await memd.desk.handle(caller, LeaseReleased(lease_id=answer.message.lease_id))
    (stuck,) = await regions(memd)
    assert (stuck.state, stuck.lease_id) == ("stuck", None)
    assert stuck.detail.startswith("busy: it is still mapped or open")
    unplug = UnplugRequested(region_id=stuck.region_id)
    assert isinstance((await memd.desk.handle(caller, unplug)).message, MemoryRefused)
    forced = UnplugRequested(region_id=stuck.region_id, force=True)
    assert (await memd.desk.handle(caller, forced)).message == RegionUnplugged(
        region_id=stuck.region_id, num_bytes=HUGE_PAGE_BYTES
    )
    assert await regions(memd) == ()
    answer.handle.close()


async def test_a_forced_release_takes_the_pages_away(memd: House) -> None:
    caller = Caller()
    answer = await memd.desk.handle(caller, ask())
    assert isinstance(answer.message, LeaseGranted)
    assert answer.handle is not None
    assert answer.descriptor is not None
    os.pwrite(answer.descriptor, b"x" * 4096, 0)
    assert os.fstat(answer.descriptor).st_blocks > 0
    await memd.desk.handle(caller, LeaseReleased(lease_id=answer.message.lease_id, force=True))
    assert os.fstat(answer.descriptor).st_blocks == 0
    assert await regions(memd) == ()
    answer.handle.close()


async def test_a_denial_says_why_and_changes_nothing(memd: House) -> None:
    answer = await memd.desk.handle(Caller(), ask(5 * HUGE_PAGE_BYTES))
    assert isinstance(answer.message, LeaseDenied)
    assert "ANOLE_MEMD_BUDGET_BYTES" in answer.message.reason
    assert answer.descriptor is None
    assert await sizes(memd) == (0, 0)


async def test_when_the_backend_has_no_region_the_budget_is_not_used_up(tmp_path: Path) -> None:
    backend = SlotBackend()
    memd = house(books_at(tmp_path / "journal", 3 * REGION_BYTES), backend)
    for method in ("plug", "handle"):
        backend.fails[method] = [RegionRefused("the kernel says no")]
        answer = await memd.desk.handle(Caller(), ask())
        assert isinstance(answer.message, LeaseDenied)
        assert "the kernel says no" in answer.message.reason
        assert await sizes(memd) == (0, 0)
    memd.books.close()


async def test_a_lease_of_a_node_says_which_and_leaves_it_plugged(slots: House) -> None:
    caller = Caller()
    first = await granted(slots, caller)
    assert (first.node, first.region_id, first.num_bytes) == (1, "slot-0", REGION_BYTES)
    await slots.desk.handle(caller, LeaseReleased(lease_id=first.lease_id))
    assert [region.state for region in await regions(slots)] == ["free"]
    again = await granted(slots, caller)
    assert again.region_id == first.region_id
    assert again.lease_id != first.lease_id


async def test_operators_plug_and_unplug_what_is_free(slots: House) -> None:
    caller = Caller()
    answer = await slots.desk.handle(caller, PlugRequested(num_bytes=1))
    assert isinstance(answer.message, RegionsReported)
    lease = await granted(slots, caller)
    assert lease.region_id == answer.message.regions[0].region_id
    unplug = UnplugRequested(region_id=lease.region_id)
    refused = (await slots.desk.handle(caller, unplug)).message
    assert isinstance(refused, MemoryRefused)
    assert "is leased" in refused.reason
    await slots.desk.handle(caller, LeaseReleased(lease_id=lease.lease_id))
    unplugged = (await slots.desk.handle(caller, unplug)).message
    assert unplugged == RegionUnplugged(region_id=lease.region_id, num_bytes=REGION_BYTES)
    unknown = (await slots.desk.handle(caller, unplug)).message
    assert isinstance(unknown, MemoryRefused)
    assert "anole memd list" in unknown.reason


async def test_nothing_is_plugged_ahead_where_regions_are_made_on_demand(memd: House) -> None:
    answer = await memd.desk.handle(Caller(), PlugRequested(num_bytes=1))
    assert isinstance(answer.message, MemoryRefused)


async def test_slots_that_are_all_taken_are_a_named_refusal(slots: House) -> None:
    for _ in range(3):
        await granted(slots, Caller())
    answer = await slots.desk.handle(Caller(), ask())
    assert isinstance(answer.message, LeaseDenied)
    assert "no room" in answer.message.reason
    too_large = await slots.desk.handle(Caller(), ask(REGION_BYTES + 1))
    assert isinstance(too_large.message, LeaseDenied)


async def test_regions_are_told_a_page_at_a_time(tmp_path: Path) -> None:
    memd = house(books_at(tmp_path / "journal", 2**30, max_leases=200))
    caller = Caller()
    for _ in range(70):
        await granted(memd, caller, 4096)
    pages = [(await memd.desk.handle(caller, RegionsRequested(skip=n))).message for n in (0, 64)]
    assert all(isinstance(page, RegionsReported) for page in pages)
    found = [(len(page.regions), page.has_more) for page in pages if hasattr(page, "regions")]
    assert found == [(64, True), (6, False)]
    memd.books.close()
    await memd.backend.close()


async def test_a_message_that_only_memd_sends_is_an_error(memd: House) -> None:
    with pytest.raises(MessageError, match=r"lease\.ended"):
        await memd.desk.handle(Caller(), LeaseEnded(lease_id=LeaseId("lease-1")))


async def test_who_watches_is_told_at_once(memd: House) -> None:
    caller = Caller()
    assert isinstance(
        (await memd.desk.handle(caller, WatchRequested())).message, MemoryStatusReported
    )
    assert caller.is_watching


async def test_a_lease_with_a_time_ends_unless_it_is_renewed(memd: House) -> None:
    caller = Caller(ALICE)
    answer = await memd.desk.handle(caller, ask(ttl_s=10))
    assert isinstance(answer.message, LeaseGranted)
    assert answer.handle is not None
    answer.handle.close()
    lease_id = answer.message.lease_id
    memd.clock.time_s += 9
    await memd.desk.handle(caller, LeaseRenewed(lease_id=lease_id, ttl_s=10))
    memd.clock.time_s += 9
    assert memd.books.ledger.expired(memd.clock.now()) == ()
    memd.clock.time_s += 1
    assert [one.holder for one in memd.books.ledger.expired(memd.clock.now())] == [ALICE]
    await memd.lessor.sweep(memd.clock.now())
    assert await sizes(memd) == (0, 0)
    gone = await memd.desk.handle(caller, LeaseRenewed(lease_id=lease_id, ttl_s=10))
    assert isinstance(gone.message, LeaseDenied)


@pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), 1e9])
async def test_a_time_that_is_none_is_refused(memd: House, ttl_s: float) -> None:
    answer = await memd.desk.handle(Caller(), ask(ttl_s=ttl_s))
    assert isinstance(answer.message, LeaseDenied)
    assert await sizes(memd) == (0, 0)


async def test_a_grant_is_a_span_in_the_askers_trace(
    memd: House, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    with telemetry.tracer.start_as_current_span("adapter.load") as load:
        headers = headers_of(load)
    answer = await memd.desk.handle(Caller(), ask(headers=headers))
    assert answer.handle is not None
    answer.handle.close()
    span = spans.get_finished_spans()[-1]
    assert span.name == "lease"
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert span.parent.span_id == load.get_span_context().span_id
    assert span.context.trace_id == load.get_span_context().trace_id
    assert span.attributes is not None
    assert span.attributes["anole.lease.bytes"] == HUGE_PAGE_BYTES
    assert span.status.status_code is StatusCode.UNSET


async def test_a_denial_is_a_span_that_failed(memd: House, spans: InMemorySpanExporter) -> None:
    await memd.desk.handle(Caller(), ask(0, headers={"traceparent": "no such thing"}))
    span = spans.get_finished_spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "BadRegionSize"
    assert span.parent is None
