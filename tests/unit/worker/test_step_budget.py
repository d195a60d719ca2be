"""How a step is divided between prompts and streams."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anole_worker.core.step_budget import StepBudget, StepSeconds


def seconds_of(prompt_tokens: int, rows: int) -> float:
    return 0.004 + prompt_tokens * 1.3e-4 + rows * 4e-4


def learnt(seconds: StepSeconds, num_steps: int = 200, times: float = 1.0) -> StepSeconds:
    for step in range(num_steps):
        tokens = step * 37 % 900 * (step % 3 > 0)
        rows = 20 + step % 5
        seconds.learn(prompt_tokens=tokens, rows=rows, seconds=times * seconds_of(tokens, rows))
    return seconds


def budget(**options: float) -> StepBudget:
    found = StepBudget(**{"longest_s": 0.3, **options})
    learnt(found.seconds)
    for _ in range(200 if options.get("alone_share") == 0.0 else 0):
        found.share(rows=1, backlog=100_000)  # nothing is among the largest of none
    return found


def test_what_prompts_and_decodes_cost_is_known_after_some_steps() -> None:
    seconds = learnt(StepSeconds(), 30)
    assert seconds.token_s == pytest.approx(1.3e-4, rel=0.1)
    assert seconds.decode_s(20) == pytest.approx(seconds_of(0, 20), rel=0.2)


def test_a_machine_that_gets_slower_is_followed() -> None:
    seconds = learnt(learnt(StepSeconds()), 300, times=2.0)
    assert seconds.token_s == pytest.approx(2 * 1.3e-4, rel=0.1)


def test_an_odd_step_after_a_long_time_without_prompts_throws_nothing_over() -> None:
    seconds = learnt(StepSeconds())
    for _ in range(10_000):
        seconds.learn(prompt_tokens=0, rows=20, seconds=seconds_of(0, 20))
    seconds.learn(prompt_tokens=100, rows=20, seconds=3 * seconds_of(100, 20))
    assert seconds.token_s < 2 * 1.3e-4


def test_prompts_take_the_step_until_it_is_as_long_as_it_may_be() -> None:
    one = budget(longest_s=0.1, alone_share=0.0)
    few, many = (one.share(rows=20, backlog=size) for size in (100, 100_000))
    assert few.prompt_tokens == 100
    assert seconds_of(many.prompt_tokens, 20) == pytest.approx(0.1, rel=0.15)


def test_streams_however_many_leave_prompts_half_a_step() -> None:
    one = budget(longest_s=0.1, alone_share=0.0)
    one.seconds.learn(prompt_tokens=0, rows=500, seconds=5.0)
    assert one.share(rows=500, backlog=100_000).prompt_tokens > 300


def test_about_the_largest_share_of_prompt_steps_runs_without_streams() -> None:
    one = budget(alone_share=0.2)
    sizes = [step * 7919 % 800 + 1 for step in range(4000)]
    alone = []
    for size in sizes:
        share = one.share(rows=10, backlog=size)
        rows = 10 if share.with_decodes else 0
        one.learn(prompt_tokens=size, rows=rows, seconds=seconds_of(size, rows))
        one.learn(prompt_tokens=0, rows=10, seconds=seconds_of(0, 10))
        alone += [size] if rows == 0 else []
    assert len(alone) / len(sizes) == pytest.approx(0.2, abs=0.05)
    assert min(alone[200:]) > 500


def test_while_streams_hardly_feel_prompts_these_run_alone_whatever_their_size() -> None:
    one = budget(alone_share=0.0)
    for prompts_every, with_decodes in ((100, False), (4, True)):
        for step in range(300):
            if step % prompts_every == 0:
                one.learn(prompt_tokens=300, rows=0, seconds=seconds_of(300, 0))
            one.learn(prompt_tokens=0, rows=10, seconds=seconds_of(0, 10))
        assert one.share(rows=10, backlog=300).with_decodes == with_decodes


def test_a_prompt_that_takes_several_steps_shares_them_all() -> None:
    one = budget(longest_s=0.1, alone_share=1.0)
    assert not one.share(rows=10, backlog=300).with_decodes
    one.learn(prompt_tokens=300, rows=0, seconds=seconds_of(300, 0))
    one.learn(prompt_tokens=0, rows=10, seconds=seconds_of(0, 10))
    assert one.share(rows=10, backlog=3000).with_decodes


def test_streams_are_left_out_for_a_bounded_time_only() -> None:
    one = budget(longest_s=0.1, alone_share=1.0)
    waited_s, longest_s = 0.0, 0.0
    for _ in range(200):
        share = one.share(rows=10, backlog=500)
        rows = 10 if share.with_decodes else 0
        seconds = seconds_of(share.prompt_tokens, rows)
        one.learn(prompt_tokens=share.prompt_tokens, rows=rows, seconds=seconds)
        waited_s += seconds
        longest_s = max(longest_s, waited_s)
        waited_s = 0.0 if rows else waited_s
    assert 0.1 < longest_s < 2 * 0.1 + 0.02


def test_what_streams_waited_is_forgotten_once_they_had_a_token() -> None:
    one = budget(longest_s=0.1, alone_share=1.0)
    for _ in range(20):
        assert not one.share(rows=10, backlog=600).with_decodes
        one.learn(prompt_tokens=600, rows=0, seconds=seconds_of(600, 0))
        one.learn(prompt_tokens=0, rows=10, seconds=seconds_of(0, 10))


def test_what_prompts_took_while_there_was_no_stream_is_no_streams_wait() -> None:
    one = budget(longest_s=0.1, alone_share=1.0)
    for _ in range(5):
        one.share(rows=0, backlog=600)
        one.learn(prompt_tokens=600, rows=0, seconds=seconds_of(600, 0))
    assert not one.share(rows=10, backlog=600).with_decodes


def test_without_prompts_streams_run_and_without_streams_prompts() -> None:
    one = budget()
    assert one.share(rows=4, backlog=0).with_decodes
    assert one.share(rows=0, backlog=5).prompt_tokens == 5


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 64), st.floats(0, 5)), max_size=30),
    st.integers(1, 10_000),
    st.integers(0, 64),
)
def test_whatever_was_learnt_a_prompt_goes_on(
    steps: list[tuple[int, int, float]], backlog: int, rows: int
) -> None:
    one = StepBudget(longest_s=0.1, min_tokens=8, max_tokens=512)
    for tokens, num_rows, seconds in steps:
        one.seconds.learn(prompt_tokens=tokens, rows=num_rows, seconds=seconds)
    share = one.share(rows=rows, backlog=backlog)
    assert min(backlog, 8) <= share.prompt_tokens <= min(backlog, 512)


def test_a_step_without_time_says_nothing() -> None:
    seconds = StepSeconds()
    for _ in range(9):
        seconds.learn(prompt_tokens=1, rows=1, seconds=0.0)
    assert not seconds.is_known


def test_streams_are_not_left_out_for_long_by_many_steps_that_cost_more_than_their_tokens() -> None:
    one = StepBudget(longest_s=0.3, alone_share=1.0)

    def run(backlog: int) -> float:
        share = one.share(rows=10, backlog=backlog)
        rows = 10 if share.with_decodes else 0
        seconds = 0.01 + share.prompt_tokens * 1e-5 + rows * 1e-4
        one.learn(prompt_tokens=share.prompt_tokens, rows=rows, seconds=seconds)
        return 0.0 if rows else seconds

    for _ in range(100):
        run(8000)
        run(0)
    waited_s, longest_s = 0.0, 0.0
    for _ in range(500):
        found_s = run(20)
        waited_s = waited_s + found_s if found_s else 0.0
        longest_s = max(longest_s, waited_s)
    assert longest_s <= 2 * 0.3
