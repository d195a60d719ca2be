import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from anole_memd.core.records import SizeRequested
from anole_memd.core.region import RegionState, Trouble
from anole_memd.errors import (
    BackendError,
    BackendSilent,
    NoRegion,
    OverBudget,
    PartialUnplug,
    RegionBusy,
    RegionRefused,
)
from anole_memd.keeper import MAX_TRIES
from anole_shared.ids import LeaseId, RegionId
from anole_shared.messages import (
    RegionsReported,
    RegionsRequested,
    RegionUnplugged,
    UnplugRequested,
)
from anole_shared.units import MiB
from tests.unit.memd.books import (
    ALICE,
    BOB,
    REGION_BYTES,
    SELF,
    Caller,
    House,
    SlotBackend,
    ask,
    house,
    opened,
)

SLOT = RegionId("slot-0")


@pytest.fixture
def backend() -> SlotBackend:
    return SlotBackend()


@pytest.fixture
def memd(tmp_path: Path, backend: SlotBackend) -> House:
    return house(opened(tmp_path / "journal", 4 * REGION_BYTES), backend)


def state(memd: House) -> RegionState | None:
    region = memd.books.ledger.region(SLOT)
    memd.books.ledger.check_invariants()
    return region.state if region else None


FAULTS = [
    (RegionBusy("EBUSY at block 33"), Trouble.BUSY, REGION_BYTES),
    (PartialUnplug("half", num_bytes=64 * MiB, left_bytes=64 * MiB), Trouble.PARTIAL, 64 * MiB),
    (BackendSilent("no answer in 5 s"), Trouble.SILENT, REGION_BYTES),
    (RegionRefused("no"), Trouble.REFUSED, REGION_BYTES),
]


@pytest.mark.parametrize(("fault", "trouble", "left_bytes"), FAULTS, ids=lambda f: str(f)[:8])
async def test_what_cannot_be_unplugged_is_stuck_by_name_and_tried_again(
    memd: House, backend: SlotBackend, fault: BackendError, trouble: Trouble, left_bytes: int
) -> None:
    await memd.keeper.plug(1, "test")
    backend.fails["unplug"] = [fault]
    with pytest.raises(type(fault)):
        await memd.keeper.unplug(SLOT)
    region = memd.books.ledger.region(SLOT)
    assert region is not None
    assert (region.state, region.trouble, region.detail) == ("stuck", trouble, str(fault))
    assert memd.books.ledger.sizes.plugged == left_bytes
    await memd.keeper.retry(memd.clock.now())
    assert state(memd) is None
    assert memd.books.ledger.sizes.plugged == 0


async def detail_for_operators(memd: House) -> str:
    answer = (await memd.desk.handle(Caller(BOB), RegionsRequested())).message
    assert isinstance(answer, RegionsReported)
    return answer.regions[0].detail


async def test_tries_are_bounded_and_an_operator_sees_that_and_can_ask_for_one_more(
    memd: House, backend: SlotBackend
) -> None:
    await memd.keeper.plug(1, "test")
    backend.fails["unplug"] = [RegionBusy("busy")] * 1000
    with pytest.raises(RegionBusy):
        await memd.keeper.unplug(SLOT)
    assert await detail_for_operators(memd) == "busy: busy"
    for _ in range(10_000):
        memd.clock.time_s += 0.5
        await memd.keeper.retry(memd.clock.now())
    assert backend.calls.count("unplug slot-0") == 1 + MAX_TRIES
    assert memd.keeper.num_given_up == 1
    assert state(memd) is RegionState.STUCK
    assert await detail_for_operators(memd) == (
        "given up (`anole memd unplug slot-0` tries again), busy: busy"
    )
    backend.fails.clear()
    answer = await memd.desk.handle(Caller(BOB), UnplugRequested(region_id=SLOT))
    assert answer.message == RegionUnplugged(region_id=SLOT, num_bytes=REGION_BYTES)
    assert memd.keeper.num_given_up == 0
    assert state(memd) is None


async def test_a_plug_that_is_refused_leaves_nothing(memd: House, backend: SlotBackend) -> None:
    backend.fails["plug"] = [RegionRefused("no memory")]
    with pytest.raises(NoRegion, match="no memory"):
        await memd.keeper.plug(1, "test")
    assert state(memd) is None


async def test_a_plug_that_is_not_answered_is_undone_later(
    memd: House, backend: SlotBackend
) -> None:
    backend.fails["plug"] = [BackendSilent("no answer")]
    with pytest.raises(NoRegion, match="no answer"):
        await memd.keeper.plug(1, "test")
    assert state(memd) is RegionState.STUCK
    await memd.keeper.retry(memd.clock.now())
    assert state(memd) is None


async def test_what_is_vacated_but_in_use_is_stuck_until_it_is_not(
    memd: House, backend: SlotBackend
) -> None:
    lease_id = await leased(memd)
    backend.used.add(SLOT)
    await memd.lessor.release(lease_id)
    region = memd.books.ledger.region(SLOT)
    assert region is not None
    assert region.trouble is Trouble.BUSY
    assert "4711" in region.detail
    backend.used.clear()
    await memd.keeper.retry(memd.clock.now())
    assert state(memd) is None


async def test_when_nobody_says_whether_it_is_in_use_it_is_stuck(
    memd: House, backend: SlotBackend
) -> None:
    lease_id = await leased(memd)
    backend.fails["is_released"] = [BackendSilent("sysfs hangs")]
    await memd.lessor.release(lease_id)
    assert state(memd) is RegionState.STUCK


async def leased(memd: House) -> LeaseId:
    granted = await memd.lessor.grant(ALICE, ask(), memd.clock.now())
    return granted.lease.lease_id


async def test_the_request_is_followed_by_whole_regions(memd: House) -> None:
    ledger = memd.books.ledger
    ledger.requested_bytes = 2 * REGION_BYTES + 1
    await memd.keeper.follow_request(is_shrinking=False)
    assert ledger.sizes.plugged == 2 * REGION_BYTES
    lease_id = await leased(memd)
    ledger.requested_bytes = 0
    await memd.keeper.follow_request(is_shrinking=True)
    assert ledger.sizes.plugged == ledger.sizes.leased == REGION_BYTES
    await memd.lessor.release(lease_id)
    await memd.keeper.follow_request(is_shrinking=True)
    assert ledger.sizes.plugged == 0


async def test_who_waits_has_a_region_when_somebody_else_has_given_it_memory(
    memd: House, backend: SlotBackend
) -> None:
    assert backend.slots is not None
    backend.without_memory = {slot.region_id for slot in backend.slots}
    with pytest.raises(OverBudget, match=r"none of the 4 regions .* has memory yet"):
        await memd.lessor.grant(ALICE, ask(), 0.0)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(memd.lessor.grant(SELF, replace(ask(), wait_s=60), 0.0))
        await asyncio.sleep(0.05)
        backend.without_memory.remove(RegionId("slot-2"))
        await memd.lessor.sweep(0.0)
    assert waiting.result().lease.region_id == "slot-2"


async def test_regions_without_memory_are_left_out_when_more_is_requested(
    memd: House, backend: SlotBackend
) -> None:
    backend.without_memory = {SLOT}
    memd.books.note([SizeRequested(num_bytes=2 * REGION_BYTES)])
    await memd.keeper.follow_request(is_shrinking=False)
    assert list(backend.plugged) == ["slot-1", "slot-2"]
