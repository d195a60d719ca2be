"""The requests that the real and the simulated worker are both given."""

import pytest

from anole_sim.metrics import Life
from anole_sim.profile import A40_7B, PCIE
from anole_sim.profile_file import Fitted
from anole_worker.core.step_budget import PASSING_ON_CPU
from anole_worker.settings import WorkerSettings
from bench import replay


def test_the_same_seed_makes_the_same_requests() -> None:
    assert replay.requests(20, 1.0, 3) == replay.requests(20, 1.0, 3)
    assert replay.requests(20, 1.0, 3) != replay.requests(20, 1.0, 4)


def test_no_two_prompts_begin_alike() -> None:
    assert len({replay.prompt(16, seed) for seed in range(100)}) == 100


def test_the_simulator_answers_every_request_in_order_of_arrival() -> None:
    work = replay.requests(20, 1.0, 0)
    lives = replay.simulated(Fitted(profile=A40_7B, link=PCIE), work)
    assert [life.arrival_s for life in lives] == [ask.arrival_s for ask in work.asks]
    assert [life.num_made for life in lives] == [ask.output_tokens for ask in work.asks]


def test_figures_leave_out_the_first_tenth() -> None:
    slow = Life(arrival_s=0.0, isolated_s=0.0, num_tokens=2, first_s=50.0, end_s=99.0)
    rest = [
        Life(arrival_s=1.0, isolated_s=0.0, num_tokens=3, first_s=1.5, end_s=2.5) for _ in range(9)
    ]
    assert replay.figures([slow, *rest]) == pytest.approx(
        {"TTFT P50": 0.5, "TTFT P99": 0.5, "TPOT P50": 0.5, "E2E mean": 1.5}
    )


def test_the_workers_settings_are_those_that_ship() -> None:
    shipped = WorkerSettings()
    assert replay.WORKER.longest_s == shipped.longest_step_s
    assert replay.WORKER.alone_share == shipped.alone_share
    assert replay.WORKER.passing == PASSING_ON_CPU
    assert shipped.prompt_passing is None
    assert replay.WORKER.token_budget == shipped.token_budget
    assert replay.WORKER.engine.max_loads == shipped.max_loads
    assert replay.WORKER.eviction == shipped.eviction
