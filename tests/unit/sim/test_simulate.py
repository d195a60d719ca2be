"""Whole runs: the same from the same seed, and different where they should be."""

from dataclasses import replace

import pytest

from anole_sim.metrics import Summary
from anole_sim.profile import A40_7B, FIT, PCIE, PROFILES, SLOW
from anole_sim.simulate import Case, run, simulate
from anole_sim.systems import SYSTEMS
from anole_sim.workload import Ask, Plan, Workload, make

PLAN = Plan(scale=1 / 6, rate=9.0, duration_s=60.0)


def summary(system: str, plan: Plan = PLAN, **more: object) -> Summary:
    case = Case(system=SYSTEMS[system], plan=plan, profile=A40_7B, link=PCIE)
    return simulate(replace(case, **more))


@pytest.mark.parametrize("system", ["anole", "chameleon", "slora"])
def test_the_same_seed_makes_the_same_bytes(system: str) -> None:
    lives = []
    for _ in range(2):
        case = Case(system=SYSTEMS[system], plan=PLAN, profile=A40_7B, link=SLOW)
        simulation, found = run(case, make(PLAN))
        lives.append((simulation.lives(), found))
    assert lives[0] == lives[1]
    assert summary(system, replace(PLAN, seed=1)) != lives[0][1]


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_answers_everything_with_its_invariants_kept(system: str) -> None:
    plan = replace(PLAN, duration_s=20.0, num_adapters=200)
    found = summary(system, plan, profile=A40_7B.with_slots(8_000), is_checked=True)
    assert found.unfinished == 0


def test_a_request_alone_takes_what_the_profile_says() -> None:
    work = Workload(name="one", asks=[Ask(1.0, 400, 50, 0)], ranks=[32], duration_s=2.0)
    case = Case(system=SYSTEMS["slora"], plan=PLAN, profile=A40_7B, link=PCIE)
    simulation, _ = run(case, work)
    (life,) = simulation.lives()
    load_s = PCIE.seconds(A40_7B.adapter_bytes(32))
    assert life.ttft_s == pytest.approx(load_s + A40_7B.prefill_s(400, 32))
    assert life.e2e_s == pytest.approx(life.isolated_s, rel=1e-3)


def test_s_lora_waits_ten_steps_between_admissions_and_pays_for_it() -> None:
    assert summary("slora").ttft_p50 > 3 * summary("slora-1").ttft_p50


def test_a_load_that_blocks_is_paid_by_everybody_and_one_beside_the_steps_is_not() -> None:
    plan = replace(PLAN, num_adapters=500)
    blocking, beside = (summary(name, plan, link=FIT) for name in ("lru-1", "anole"))
    assert beside.tpot_p99 < blocking.tpot_p99 / 2


def test_a_cache_keeps_most_adapters_that_s_lora_drops() -> None:
    assert summary("lru-1").link_bytes_per_s < summary("slora-1").link_bytes_per_s / 2


def test_where_memory_is_short_the_youngest_starts_again_and_still_ends() -> None:
    plan = replace(PLAN, duration_s=30.0)
    case = Case(
        system=replace(SYSTEMS["anole"], output_share=0.2),
        plan=plan,
        profile=A40_7B.with_slots(2_500),
        link=PCIE,
        is_checked=True,
    )
    found = simulate(case)
    assert found.preemptions > 0
    assert found.unfinished == 0


def test_several_workers_share_what_one_could_not_bear() -> None:
    plan = replace(PLAN, rate=30.0, duration_s=30.0)
    one, four = (summary("anole", plan, num_workers=count) for count in (1, 4))
    assert four.ttft_p99 < one.ttft_p99 / 4


@pytest.mark.parametrize("profile", ["h100-8b", "h200x4-70b"])
def test_other_machines_run(profile: str) -> None:
    plan = replace(PLAN, scale=1.0, rate=10.0, duration_s=20.0)
    assert summary("anole", plan, profile=PROFILES[profile]).unfinished == 0


@pytest.mark.parametrize("predictor", ["paper", "60", "online", "none"])
def test_wrong_predictions_lose_nothing(predictor: str) -> None:
    case = Case(
        system=replace(SYSTEMS["anole"], predictor=predictor),
        plan=replace(PLAN, duration_s=30.0),
        profile=A40_7B.with_slots(10_000),
        link=PCIE,
        is_checked=True,
    )
    assert simulate(case).unfinished == 0
