"""How long requests run."""

import pytest

from anole_scheduler.core.pace import Pace
from anole_scheduler.core.request import Progress
from tests.unit.scheduler.playbook import waiting


def ran(num_prompt_tokens: int, num_output_tokens: int) -> Progress:
    return waiting(
        num_prompt_tokens=num_prompt_tokens, max_tokens=999, num_output_tokens=num_output_tokens
    )


def test_while_nothing_has_ended_everything_takes_no_time() -> None:
    assert Pace().duration_s(waiting()) == 0.0


def test_a_request_takes_as_long_as_its_tokens_did_before() -> None:
    pace = Pace()
    pace.learn(ran(100, 90), now=10.0)  # 10 + 90 tokens' worth in 10 s
    asked = waiting(num_prompt_tokens=100, max_tokens=500, predicted_tokens=40)
    assert pace.duration_s(asked) == pytest.approx(5.0)
    asked.admitted_s = 2.0
    assert pace.left_s(asked, now=4.0) == pytest.approx(3.0)
    assert pace.left_s(asked, now=99.0) == 0.0


def test_what_was_aborted_teaches_nothing() -> None:
    pace = Pace()
    pace.learn(waiting(), now=100.0)
    assert pace.duration_s(waiting()) == 0.0


def test_the_past_fades() -> None:
    pace = Pace()
    for _ in range(2000):
        pace.learn(ran(0, 10), now=100.0)
    for _ in range(2000):
        pace.learn(ran(0, 10), now=1.0)
    asked = waiting(num_prompt_tokens=0, predicted_tokens=10)
    assert pace.duration_s(asked) == pytest.approx(1.0, rel=0.01)
