import os
from pathlib import Path

import pytest

from anole_memd.backends import processes
from anole_memd.core.lease import Holder
from anole_memd.core.region import RegionState
from anole_memd.errors import BackendSilent, PartialUnplug, RegionBusy
from anole_memd.recovery import recover
from anole_shared.ids import RegionId
from anole_shared.units import MiB
from tests.unit.memd.books import REGION_BYTES, House, SlotBackend, ask, house, opened

SLOT = RegionId("slot-0")
DEAD = Holder(pid=2**22 - 1, started=1)


def me() -> Holder:
    return Holder(pid=os.getpid(), started=processes.start_ticks(os.getpid()) or 0)


@pytest.fixture
def backend() -> SlotBackend:
    return SlotBackend()


def started(tmp_path: Path, backend: SlotBackend) -> House:
    """A memd; the one before is not asked whether it has ended."""
    return house(opened(tmp_path / "journal", 4 * REGION_BYTES), backend)


async def recovered(memd: House) -> tuple[RegionId, ...]:
    vacated = await recover(memd.books, memd.backend, timeout_s=5)
    memd.books.ledger.check_invariants()
    return tuple(region.region_id for region in vacated)


async def test_a_living_holder_keeps_its_lease(tmp_path: Path, backend: SlotBackend) -> None:
    killed = started(tmp_path, backend)
    lease = (await killed.lessor.grant(me(), ask(), 0)).lease
    memd = started(tmp_path, backend)
    assert await recovered(memd) == ()
    (found,) = memd.books.ledger.leases
    assert (found.lease_id, found.holder, found.state) == (lease.lease_id, me(), "detached")
    assert memd.books.ledger.sizes.leased == REGION_BYTES


async def test_a_dead_holders_region_is_vacated(tmp_path: Path, backend: SlotBackend) -> None:
    killed = started(tmp_path, backend)
    await killed.lessor.grant(DEAD, ask(), 0)
    memd = started(tmp_path, backend)
    assert await recovered(memd) == (SLOT,)
    await memd.keeper.vacate(SLOT)
    assert memd.books.ledger.leases == ()
    assert memd.books.ledger.sizes.plugged == REGION_BYTES
    assert next(memd.books.ledger.free_regions()).region_id == SLOT


async def test_a_process_id_that_is_anothers_by_now_is_no_holder(
    tmp_path: Path, backend: SlotBackend
) -> None:
    killed = started(tmp_path, backend)
    await killed.lessor.grant(Holder(pid=os.getpid(), started=1), ask(), 0)
    assert await recovered(started(tmp_path, backend)) == (SLOT,)


async def test_a_lease_whose_region_is_gone_has_ended(tmp_path: Path, backend: SlotBackend) -> None:
    killed = started(tmp_path, backend)
    await killed.lessor.grant(me(), ask(), 0)
    backend.plugged.clear()
    memd = started(tmp_path, backend)
    assert await recovered(memd) == ()
    assert (memd.books.ledger.leases, memd.books.ledger.regions) == ((), ())


@pytest.mark.parametrize("was_done", [True, False])
async def test_killed_while_it_plugged(
    tmp_path: Path, backend: SlotBackend, was_done: bool
) -> None:
    killed = started(tmp_path, backend)
    backend.fails["plug"] = [KeyboardInterrupt()]  # as good as SIGKILL for what is on disk
    with pytest.raises(KeyboardInterrupt):
        await killed.keeper.plug(1, "test")
    if was_done:
        backend.plugged[SLOT] = REGION_BYTES
    memd = started(tmp_path, backend)
    await recovered(memd)
    assert memd.books.ledger.sizes.plugged == (REGION_BYTES if was_done else 0)
    await memd.keeper.retry(0)
    assert memd.books.ledger.regions == ()
    assert backend.plugged == {}


async def test_killed_while_it_unplugged(tmp_path: Path, backend: SlotBackend) -> None:
    killed = started(tmp_path, backend)
    await killed.keeper.plug(1, "test")
    backend.fails["unplug"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        await killed.keeper.unplug(SLOT)
    killed.books.flush()
    memd = started(tmp_path, backend)
    backend.fails["adopt"] = [PartialUnplug("half", num_bytes=0, left_bytes=2 * MiB)]
    assert await recovered(memd) == ()
    region = memd.books.ledger.region(SLOT)
    assert region is not None
    assert (region.state, region.num_bytes) == (RegionState.STUCK, 2 * MiB)
    await memd.keeper.retry(0)
    assert memd.books.ledger.regions == ()


async def test_stuck_regions_stay_stuck_and_are_tried_again(
    tmp_path: Path, backend: SlotBackend
) -> None:
    killed = started(tmp_path, backend)
    await killed.keeper.plug(1, "test")
    backend.fails["unplug"] = [RegionBusy("busy")]
    with pytest.raises(RegionBusy):
        await killed.keeper.unplug(SLOT)
    killed.books.flush()
    memd = started(tmp_path, backend)
    backend.fails["adopt"] = [BackendSilent("still asleep")]
    await recovered(memd)
    assert memd.books.ledger.sizes.plugged == REGION_BYTES
    await memd.keeper.retry(0)
    assert memd.books.ledger.regions == ()


async def test_free_regions_that_are_there_stay_free_and_others_are_forgotten(
    tmp_path: Path, backend: SlotBackend
) -> None:
    killed = started(tmp_path, backend)
    await killed.keeper.plug(1, "test")
    await killed.keeper.plug(1, "test")
    killed.books.flush()
    del backend.plugged[SLOT]
    memd = started(tmp_path, backend)
    await recovered(memd)
    assert [region.region_id for region in memd.books.ledger.regions] == ["slot-1"]
    assert memd.books.ledger.regions[0].state is RegionState.FREE
