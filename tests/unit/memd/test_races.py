"""What happens to a region while memd waits for the backend."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from anole_memd.backend import Plugged
from anole_memd.core.lease import LeaseState
from anole_memd.core.records import LeaseMoved, LeaseOpened, RegionMoved
from anole_memd.core.region import RegionSpec, RegionState
from anole_memd.errors import OverBudget, RegionBusy
from anole_shared.ids import LeaseId, RegionId
from tests.unit.memd.books import REGION_BYTES, SELF, House, SlotBackend, ask, house, opened

FIRST, SECOND = RegionId("slot-0"), RegionId("slot-1")


class SlowBackend(SlotBackend):
    """Something else happens while it works."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: dict[str, Callable[[], None]] = {}
        self.answers = asyncio.Event()
        self.answers.set()

    async def plug(self, region: RegionSpec, *, timeout_s: float) -> Plugged:
        await self.answers.wait()
        return await super().plug(region, timeout_s=timeout_s)

    def _called(self, method: str, region_id: RegionId) -> None:
        self.meanwhile.pop(method, lambda: None)()
        super()._called(method, region_id)


@pytest.fixture
def backend() -> SlowBackend:
    return SlowBackend()


@pytest.fixture
def memd(tmp_path: Path, backend: SlowBackend) -> House:
    return house(opened(tmp_path / "journal", 4 * REGION_BYTES), backend)


def state(memd: House, region_id: RegionId) -> RegionState | None:
    region = memd.books.ledger.region(region_id)
    memd.books.ledger.check_invariants()
    return region.state if region else None


async def test_a_region_that_is_leased_while_others_are_unplugged_stays(
    memd: House, backend: SlowBackend
) -> None:
    memd.books.ledger.requested_bytes = 2 * REGION_BYTES
    await memd.keeper.follow_request(is_shrinking=False)
    lease = LeaseOpened(lease_id=LeaseId("lease-1"), region_id=FIRST, holder=SELF, label="worker-1")
    backend.meanwhile["unplug"] = lambda: memd.books.commit([lease])
    memd.books.ledger.requested_bytes = 0
    await memd.keeper.follow_request(is_shrinking=True)
    assert (state(memd, FIRST), state(memd, SECOND)) == (RegionState.LEASED, None)


async def test_a_stuck_region_that_comes_back_while_another_is_tried_is_not_tried(
    memd: House, backend: SlowBackend
) -> None:
    backend.fails["unplug"] = [RegionBusy("busy"), RegionBusy("busy")]
    for _ in range(2):
        region = await memd.keeper.plug(1, "test")
        with pytest.raises(RegionBusy):
            await memd.keeper.unplug(region.spec.region_id)
    gone = RegionMoved(region_id=SECOND, state=RegionState.ABSENT)
    backend.meanwhile["unplug"] = lambda: memd.books.note([gone])
    await memd.keeper.retry(memd.clock.now())
    assert (state(memd, FIRST), state(memd, SECOND)) == (None, None)
    assert backend.calls.count(f"unplug {SECOND}") == 1


async def test_a_wait_that_ends_while_its_region_is_plugged_leaves_the_books_whole(
    memd: House, backend: SlowBackend
) -> None:
    backend.answers.clear()
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(
            memd.lessor.grant(SELF, replace(ask(), wait_s=0.01), memd.clock.now())
        )
        await asyncio.sleep(0.1)
        assert state(memd, FIRST) is RegionState.PLUGGING
        backend.answers.set()
    assert waiting.result().lease.region_id == FIRST
    assert state(memd, FIRST) is RegionState.LEASED


async def test_who_waits_behind_a_slow_plug_is_refused_in_time(
    memd: House, backend: SlowBackend
) -> None:
    backend.answers.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(memd.lessor.grant(SELF, replace(ask(), wait_s=60), 0.0))
        await asyncio.sleep(0)
        with pytest.raises(OverBudget, match="others have been waiting"):
            await memd.lessor.grant(SELF, replace(ask(), wait_s=0.01), 0.0)
        backend.answers.set()


async def test_a_lease_that_is_held_again_while_it_is_looked_at_does_not_end(
    memd: House, backend: SlowBackend
) -> None:
    granted = await memd.lessor.grant(SELF, ask(), memd.clock.now())
    lease_id = granted.lease.lease_id

    def renew() -> None:
        memd.lessor.renew(SELF, lease_id, None, memd.clock.now())

    memd.books.note([LeaseMoved(lease_id=lease_id, state=LeaseState.DETACHED)])
    backend.meanwhile["is_released"] = renew
    await memd.lessor.detach(SELF, set())
    lease = memd.books.ledger.lease(lease_id)
    assert lease is not None
    assert lease.state is LeaseState.HELD


async def test_a_lease_that_is_renewed_while_another_ends_does_not_end(
    memd: House, backend: SlowBackend
) -> None:
    granted = [await memd.lessor.grant(SELF, ask(ttl_s=5), 0.0) for _ in range(2)]
    last = granted[-1].lease.lease_id
    backend.meanwhile["is_released"] = lambda: memd.lessor.renew(SELF, last, 60, 6.0)
    await memd.lessor.sweep(6.0)
    assert [lease.lease_id for lease in memd.books.ledger.leases] == [last]


async def test_a_lease_with_a_time_has_it_from_when_it_is_granted(
    memd: House, backend: SlowBackend
) -> None:
    held = [await memd.lessor.grant(SELF, ask(), 0.0) for _ in range(4)]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(memd.lessor.grant(SELF, replace(ask(ttl_s=10), wait_s=60), 0.0))
        await asyncio.sleep(0.05)
        await memd.lessor.release(held[0].lease.lease_id)
        memd.lessor.something_changed()
    expires_s = waiting.result().lease.expires_s
    assert expires_s is not None
    assert expires_s > 10.04


async def test_a_wait_that_is_no_number_is_no_wait(memd: House) -> None:
    for _ in range(4):
        await memd.lessor.grant(SELF, ask(), 0.0)
    with pytest.raises(OverBudget):
        await memd.lessor.grant(SELF, replace(ask(), wait_s=float("nan")), 0.0)
