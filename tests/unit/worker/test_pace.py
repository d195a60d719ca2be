from anole_worker.core.engine import Engine
from anole_worker.core.pace import LearntPace
from anole_worker.core.step_budget import StepBudget
from tests.unit.worker.engines import add, draw, make_engine, make_sequence, rows_of

STEP_S, TOKEN_S, ROW_S = 0.05, 0.002, 0.001
"""What a step costs here: in itself, for each prompt token, for each decode."""


def make_pace(*, first_token_s: float = 2.0, token_budget: int = 64) -> LearntPace:
    budget = StepBudget(
        token_gap_s=0.1, first_token_s=first_token_s, min_tokens=4, max_tokens=token_budget
    )
    pace = LearntPace(budget, token_budget=token_budget, weight=5.0)
    for index in range(40):
        tokens, rows = index % 7 * 4, index % 5
        seconds = STEP_S + tokens * TOKEN_S + rows * ROW_S
        pace.learn(prompt_tokens=tokens, rows=rows, context=rows * 10, seconds=seconds)
    return pace


def with_a_stream(pace: LearntPace) -> Engine:
    engine = make_engine(budget_bytes=500, pace=pace)
    add(engine, make_sequence("stream", prompt=3, max_tokens=50))
    now = 0.0
    step = engine.plan_step(now)
    assert step is not None
    engine.complete_step(draw(step), now + STEP_S + 3 * TOKEN_S)
    return engine


def test_beside_a_stream_a_prompt_is_run_in_chunks_that_keep_the_gap() -> None:
    engine = with_a_stream(make_pace())
    add(engine, make_sequence("long", prompt=200))
    chunks = [tokens for name, _, tokens in rows_of(engine.plan_step(0.1)) if name == "long"]
    assert len(chunks) == 1
    step_s = STEP_S + chunks[0] * TOKEN_S + ROW_S
    assert 0.08 < step_s <= 0.101


def test_without_a_stream_a_prompt_takes_the_whole_budget() -> None:
    engine = make_engine(budget_bytes=500, pace=make_pace())
    add(engine, make_sequence("long", prompt=200))
    assert rows_of(engine.plan_step(0.0)) == [("long", 0, 64)]


def test_prompts_that_would_be_late_make_steps_longer() -> None:
    engine = with_a_stream(make_pace(first_token_s=0.3))
    add(engine, make_sequence("long", prompt=200))
    rows = {name: tokens for name, _, tokens in rows_of(engine.plan_step(0.1))}
    assert rows["long"] == 63  # all that one stream leaves of the budget


def test_a_short_prompt_passes_a_long_one_that_came_just_before() -> None:
    engine = with_a_stream(make_pace())
    add(engine, make_sequence("long", prompt=200, arrived_s=0.1))
    add(engine, make_sequence("short", prompt=5, arrived_s=0.2))
    rows = {name: tokens for name, _, tokens in rows_of(engine.plan_step(0.2))}
    assert rows["short"] == 5


def test_no_short_prompt_passes_a_long_one_for_ever() -> None:
    engine = with_a_stream(make_pace())
    add(engine, make_sequence("long", prompt=200, arrived_s=0.0))
    # The long one's deadline is 5 * 200 * 0.002 s = 2 s after it came, a short one's 0.1 s.
    add(engine, make_sequence("late", prompt=12, arrived_s=2.5))
    rows = {name: tokens for name, _, tokens in rows_of(engine.plan_step(2.5))}
    assert "late" not in rows
    assert rows["long"] > 0
