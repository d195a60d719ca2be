import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from anole_memd.core.controller import Controller, ControllerLimits, Pressure
from anole_memd.core.revocation import RevocationState
from anole_memd.errors import OverBudget
from anole_memd.metrics import Metrics, served
from anole_memd.pilot import Pilot
from anole_shared.errors import ConfigurationError
from anole_shared.messages import DemandReported, LeaseRevoked
from tests.unit.memd.books import (
    ALICE,
    REGION_BYTES,
    SELF,
    Caller,
    House,
    SlotBackend,
    ask,
    house,
    opened,
)


class Host:
    """memd on a host of four regions whose pressure the test says."""

    def __init__(self, tmp_path: Path) -> None:
        self.pressure = Pressure.NONE
        self.memd: House = house(opened(tmp_path / "journal", 4 * REGION_BYTES), SlotBackend())
        limits = ControllerLimits(
            floor_bytes=REGION_BYTES,
            ceiling_bytes=4 * REGION_BYTES,
            block_bytes=REGION_BYTES,
            headroom=0.1,
            hold_s=10,
            step=0.125,
            deadline_s=5,
        )
        self.pilot = Pilot(
            books=self.memd.books,
            keeper=self.memd.keeper,
            lessor=self.memd.lessor,
            revoker=self.memd.revoker,
            controller=Controller(limits, 0),
            gauge=lambda: self.pressure,
            clock=self.memd.clock,
        )

    async def rounds(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.memd.clock.time_s += 0.25
            await self.pilot.round()

    @property
    def plugged(self) -> int:
        return self.memd.books.ledger.sizes.plugged // REGION_BYTES


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_the_floor_is_plugged_at_the_start(host: Host) -> None:
    await host.pilot.start()
    assert host.plugged == 1


async def test_a_region_is_plugged_ahead_and_unplugged_after_a_lull(host: Host) -> None:
    await host.pilot.start()
    leases = [await host.memd.lessor.grant(ALICE, ask(), 0) for _ in range(2)]
    await host.rounds(1)
    assert host.plugged == 3
    for granted in leases:
        await host.memd.lessor.release(granted.lease.lease_id)
    await host.rounds(9)
    assert host.plugged == 3
    await host.rounds(3)
    assert host.plugged == 1


async def test_what_is_held_but_not_used_is_asked_back_after_a_lull(host: Host) -> None:
    caller = Caller()
    for _ in range(3):
        await host.memd.lessor.grant(ALICE, ask(), 0)
    host.memd.revoker.reported(ALICE, caller, DemandReported(used_bytes=REGION_BYTES // 2))
    await host.rounds(9)
    assert caller.sent == []
    await host.rounds(3)
    (asked,) = caller.sent
    assert isinstance(asked, LeaseRevoked)
    assert asked.num_bytes == 2 * REGION_BYTES


async def test_under_pressure_leases_are_refused_and_memory_is_asked_back(host: Host) -> None:
    caller = Caller()
    await host.pilot.start()
    for _ in range(3):
        await host.memd.lessor.grant(ALICE, ask(), 0)
    host.memd.revoker.reported(ALICE, caller, DemandReported(used_bytes=REGION_BYTES))
    host.pressure = Pressure.FULL
    await host.rounds(0.25)
    assert [type(message) for message in caller.sent] == [LeaseRevoked]
    with pytest.raises(OverBudget, match="host is short of memory"):
        await host.memd.lessor.grant(ALICE, ask(), 0)
    host.pressure = Pressure.NONE
    await host.rounds(0.25)
    await host.memd.lessor.grant(ALICE, ask(), 0)


async def test_who_waits_for_room_has_it_when_the_pressure_ends(host: Host) -> None:
    host.memd.books.on_change = host.memd.lessor.something_changed
    await host.pilot.start()
    host.pressure = Pressure.SOME
    await host.rounds(0.25)
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        waiting = [
            tasks.create_task(host.memd.lessor.grant(SELF, replace(ask(), wait_s=60), 0))
            for _ in range(2)
        ]
        await asyncio.sleep(0.05)
        assert not waiting[1].done()
        host.pressure = Pressure.NONE
        await host.rounds(0.25)
    assert len(host.memd.books.ledger.leases) == 2


async def test_a_demand_beyond_all_reason_asks_for_no_more_than_there_is(host: Host) -> None:
    host.memd.revoker.reported(
        ALICE, Caller(), DemandReported(used_bytes=10**400, wanted_bytes=10**400)
    )
    await host.rounds(0.25)
    assert host.memd.revoker.wanted_bytes == host.memd.books.ledger.total_bytes


async def test_prometheus_reads_sizes_states_and_outcomes(host: Host) -> None:
    memd = host.memd
    outcomes = {RevocationState.MET: 2}
    metrics = Metrics(
        memd.books.ledger, lambda kind: outcomes.get(kind, 0), lambda: 3, lambda: Pressure.SOME
    )
    await memd.lessor.grant(ALICE, ask(), 0)
    metrics.count_unplug("done")
    metrics.count_unplug("busy")
    metrics.count_unplug("busy")
    text = generate_latest(metrics.registry).decode()
    for line in (
        'anole_memd_bytes{size="total"} 5.36870912e+08',
        'anole_memd_bytes{size="leased"} 1.34217728e+08',
        'anole_memd_regions{state="leased"} 1.0',
        'anole_memd_regions{state="stuck"} 0.0',
        "anole_memd_given_up_regions 3.0",
        "anole_memd_leases 1.0",
        'anole_memd_unplugs_total{outcome="busy"} 2.0',
        'anole_memd_revocations_total{outcome="met"} 2.0',
        "anole_memd_pressure 1.0",
    ):
        assert line in text


def test_a_metrics_port_that_is_taken_stops_the_start(host: Host) -> None:
    metrics = Metrics(host.memd.books.ledger, lambda _: 0, lambda: 0, lambda: Pressure.NONE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fault = pytest.raises(ConfigurationError, match="ANOLE_MEMD_METRICS_PORT")
        with fault, served(metrics, port):
            pass
    with served(metrics, port):
        pass
    with served(metrics, None):
        pass
