from anole_worker.core.engine import Engine
from anole_worker.core.pace import LearntPace
from anole_worker.core.step_budget import StepBudget
from tests.unit.worker.engines import add, draw, make_engine, make_sequence, rows_of

STEP_S, TOKEN_S, ROW_S = 0.05, 0.002, 0.001
"""What a step costs here: in itself, for each prompt token, for each decode."""


def make_pace(*, alone_share: float = 0.0) -> LearntPace:
    budget = StepBudget(
        longest_s=0.1, alone_share=alone_share, passing=3.0, min_tokens=4, max_tokens=64
    )
    pace = LearntPace(budget, token_budget=64)
    for index in range(40):
        tokens, rows = index % 7 * 4, index % 5
        seconds = STEP_S + tokens * TOKEN_S + rows * ROW_S
        pace.learn(prompt_tokens=tokens, rows=rows, seconds=seconds)
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
    assert 0.06 < step_s <= 0.12


def test_without_a_stream_a_prompt_takes_what_one_step_may_last() -> None:
    engine = make_engine(budget_bytes=500, pace=make_pace())
    add(engine, make_sequence("long", prompt=200))
    ((name, start, tokens),) = rows_of(engine.plan_step(0.0))
    assert (name, start) == ("long", 0)
    assert 20 < tokens <= 50


def test_a_prompt_of_several_steps_leaves_streams_out_of_its_last_one_at_most() -> None:
    pace = make_pace(alone_share=1.0)
    for _ in range(100):
        pace.share(rows=0, backlog=20)  # so that it knows what is large here
    engine = with_a_stream(pace)
    add(engine, make_sequence("long", prompt=400, max_tokens=2))
    streaks, streak, now = [], 0, 0.1
    while any(sequence.request_id == "long" for sequence in engine.sequences):
        step = engine.plan_step(now)
        rows = {name: tokens for name, _, tokens in rows_of(step)}
        streak = 0 if "stream" in rows else streak + 1
        streaks.append(streak)
        assert step is not None
        now += STEP_S + rows.get("long", 0) * TOKEN_S
        engine.complete_step(draw(step), now)
    assert len(streaks) > 4
    assert sum(streaks) <= 1


def test_a_short_prompt_passes_a_long_one_that_came_just_before() -> None:
    engine = with_a_stream(make_pace())
    add(engine, make_sequence("long", prompt=200, arrived_s=0.1))
    add(engine, make_sequence("short", prompt=5, arrived_s=0.2))
    rows = {name: tokens for name, _, tokens in rows_of(engine.plan_step(0.2))}
    assert rows["short"] == 5


def test_no_short_prompt_passes_a_long_one_for_ever() -> None:
    engine = with_a_stream(make_pace())
    add(engine, make_sequence("long", prompt=200, arrived_s=0.0))
    # The long one's deadline is five times what it takes after it came: 2 s, or a little more.
    add(engine, make_sequence("late", prompt=12, arrived_s=5.0))
    rows = {name: tokens for name, _, tokens in rows_of(engine.plan_step(5.0))}
    assert "late" not in rows
    assert rows["long"] > 0
