"""Lost, late and doubled messages, and workers that die: every request is answered once."""

import pytest

from anole_sim.faults import Faults
from anole_sim.profile import A40_7B, PCIE
from anole_sim.simulate import Case, run
from anole_sim.systems import SYSTEMS
from anole_sim.workload import Plan, make


@pytest.mark.parametrize("system", ["anole", "chameleon", "slora"])
@pytest.mark.parametrize("seed", range(4))
def test_no_request_is_lost_or_answered_twice_whatever_fails(system: str, seed: int) -> None:
    plan = Plan(scale=1 / 6, rate=12.0, duration_s=25.0, num_adapters=60, seed=seed)
    case = Case(
        system=SYSTEMS[system],
        plan=plan,
        profile=A40_7B.with_slots(6_000),
        link=PCIE,
        num_workers=3,
        faults=Faults(seed=seed, lost=0.03, late=0.1, doubled=0.1, every_s=8.0),
        is_checked=True,
    )
    simulation, found = run(case, make(plan))
    assert found.unfinished == 0
    assert simulation.gone, "no worker died: nothing was tested"
    for life in simulation.lives():
        assert life.is_over
        assert life.arrival_s < life.first_s <= life.end_s
        assert life.num_made == life.num_tokens


def test_a_worker_that_dies_costs_its_requests_a_second_attempt_and_no_token_twice() -> None:
    plan = Plan(scale=1 / 6, rate=8.0, duration_s=20.0, num_adapters=10)
    case = Case(
        system=SYSTEMS["anole"],
        plan=plan,
        profile=A40_7B,
        link=PCIE,
        num_workers=2,
        faults=Faults(seed=1, lost=0, late=0, doubled=0, every_s=5.0),
        is_checked=True,
    )
    simulation, found = run(case, make(plan))
    assert found.unfinished == 0
    assert max(job.attempt for job in simulation.jobs()) >= 1
