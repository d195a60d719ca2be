"""Whatever demand and pressure do, the controller keeps within bounds and does not flap."""

from hypothesis import given
from hypothesis import strategies as st

from anole_memd.core.controller import (
    Controller,
    ControllerLimits,
    Pressure,
    Resize,
    Revoke,
    Sample,
)
from anole_shared.units import MiB

HOLD_S, DEADLINE_S = 10.0, 3.0


def limits(floor_mib: int, room_mib: int, block_mib: int) -> ControllerLimits:
    return ControllerLimits(
        floor_bytes=floor_mib * MiB,
        ceiling_bytes=(floor_mib + room_mib) * MiB,
        block_bytes=block_mib * MiB,
        headroom=0.1,
        hold_s=HOLD_S,
        step=0.125,
        deadline_s=DEADLINE_S,
    )


SETUPS = st.builds(limits, st.integers(0, 256), st.integers(0, 2048), st.sampled_from([1, 2, 128]))
MOMENTS = st.lists(
    st.tuples(
        st.floats(0.1, 7),  # seconds since the last
        st.integers(0, 3000),  # used, MiB
        st.integers(0, 300),  # wanted
        st.integers(0, 1500),  # leased besides what is used
        st.sampled_from([*[Pressure.NONE] * 4, Pressure.SOME, Pressure.FULL]),
    ),
    min_size=1,
    max_size=60,
)


@given(SETUPS, st.integers(0, 4000), MOMENTS)
def test_it_stays_between_floor_and_ceiling_and_does_not_flap(
    setup: ControllerLimits,
    begin_mib: int,
    moments: list[tuple[float, int, int, int, Pressure]],
) -> None:
    controller = Controller(setup, begin_mib * MiB)
    now, requested = 100.0, controller.requested_bytes
    grown_s = pressed_s = asked_s = None
    for seconds, used_mib, wanted_mib, idle_mib, pressure in moments:
        now += seconds
        sample = Sample(
            used_bytes=used_mib * MiB,
            wanted_bytes=wanted_mib * MiB,
            leased_bytes=(used_mib + idle_mib) * MiB,
            pressure=pressure,
        )
        for command in controller.tick(sample, now):
            match command:
                case Resize(num_bytes=num_bytes):
                    assert setup.floor_bytes <= num_bytes <= setup.ceiling_bytes
                    assert num_bytes != requested
                    if num_bytes > requested:
                        assert pressure is Pressure.NONE
                        assert pressed_s is None or now - pressed_s >= HOLD_S
                        grown_s = now
                    elif pressure is Pressure.NONE:
                        assert grown_s is None or now - grown_s >= HOLD_S
                    requested = num_bytes
                case Revoke(num_bytes=num_bytes, deadline_s=deadline_s):
                    assert deadline_s == DEADLINE_S
                    assert asked_s is None or now - asked_s >= DEADLINE_S
                    assert 0 < num_bytes == sample.leased_bytes - requested
                    asked_s = now
        if pressure is not Pressure.NONE:
            pressed_s = now
        assert controller.requested_bytes == requested


@given(SETUPS, st.integers(0, 3000))
def test_demand_is_met_at_once_and_forgotten_after_the_hold_time(
    setup: ControllerLimits, used_mib: int
) -> None:
    controller = Controller(setup, 0)
    used = used_mib * MiB
    busy = Sample(used_bytes=used, wanted_bytes=0, leased_bytes=used, pressure=Pressure.NONE)
    idle = Sample(used_bytes=0, wanted_bytes=0, leased_bytes=used, pressure=Pressure.NONE)
    controller.tick(busy, 0.0)
    peak = controller.requested_bytes
    assert min(used, setup.ceiling_bytes) <= peak
    for tenth in range(1, int(HOLD_S * 10)):
        assert controller.tick(idle, tenth / 10) == [] or used > peak
        assert controller.requested_bytes == peak
    for tenth in range(int(HOLD_S * 10), int(HOLD_S * 10) + 3):
        controller.tick(idle, tenth / 10 + 0.05)
    assert controller.requested_bytes == setup.floor_bytes


@given(SETUPS, st.integers(1, 3000))
def test_under_pressure_it_gives_way_to_the_floor_step_by_step(
    setup: ControllerLimits, used_mib: int
) -> None:
    controller = Controller(setup, setup.ceiling_bytes)
    leased, now = used_mib * MiB, 0.0
    for _ in range(400):
        sample = Sample(
            used_bytes=leased, wanted_bytes=0, leased_bytes=leased, pressure=Pressure.SOME
        )
        for command in controller.tick(sample, now):
            if isinstance(command, Revoke):
                leased -= command.num_bytes
        now += DEADLINE_S
    assert controller.requested_bytes == setup.floor_bytes
    assert leased <= setup.floor_bytes
