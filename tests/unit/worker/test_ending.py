"""How sequences end: by a token, by their length, by an abort, by a step that breaks."""

from collections.abc import Iterable

import pytest

from anole_shared.ids import RequestId
from anole_worker.core.engine import Output
from anole_worker.core.sequence import Ending, Phase
from anole_worker.core.step import Sampling
from tests.unit.worker.engines import (
    EOS,
    adapter,
    add,
    draw,
    load_all,
    make_engine,
    make_sequence,
    rows_of,
    run,
)

A, C = adapter("a"), adapter("c")


def endings(outputs: Iterable[Output]) -> dict[str, Ending | None]:
    return {output.sequence.request_id: output.ending for output in outputs}


def test_the_end_token_ends_a_sequence_unless_told_to_ignore_it() -> None:
    engine = make_engine()
    add(engine, make_sequence("stops"), make_sequence("goes on", ignore_eos=True))
    assert endings(run(engine, token_id=EOS)) == {"stops": Ending.STOP, "goes on": None}


def test_a_stop_token_ends_its_sequence_only_and_also_where_the_end_token_is_ignored() -> None:
    engine = make_engine(token_budget=50)
    stop = frozenset({9, EOS})
    add(engine, make_sequence("stops", stop_token_ids=stop), make_sequence("other"))
    add(engine, make_sequence("ignores", stop_token_ids=stop, ignore_eos=True))
    assert endings(run(engine, token_id=9)) == {
        "stops": Ending.STOP,
        "other": None,
        "ignores": Ending.STOP,
    }


def test_a_stop_token_at_the_very_end_is_a_stop() -> None:
    engine = make_engine()
    add(engine, make_sequence("r", max_tokens=1), make_sequence("s", max_tokens=1))
    assert endings(run(engine, token_id=EOS)) == {"r": Ending.STOP, "s": Ending.STOP}


def test_nothing_that_would_end_a_sequence_is_drawn_before_its_fewest_tokens() -> None:
    engine = make_engine(token_budget=50)
    add(
        engine,
        make_sequence("r", min_tokens=2, stop_token_ids=frozenset({7})),
        make_sequence("ignores", min_tokens=2, stop_token_ids=frozenset({7}), ignore_eos=True),
        make_sequence("none"),
    )
    for banned in ({7, EOS}, {7, EOS}, set()):
        step = engine.plan_step(0)
        assert step is not None
        told = {row.request_id: set(row.banned_token_ids) for row in step.rows}
        assert told == {"r": banned, "ignores": banned - {EOS}, "none": set()}
        engine.complete_step(draw(step), 0)


def test_only_rows_that_draw_have_a_ban_and_those_that_need_it_their_history() -> None:
    engine = make_engine(token_budget=4)
    sampling = Sampling(temperature=1.0, presence_penalty=0.5)
    prompt = [10, 11, 12, 13, 14]
    add(engine, make_sequence("r", prompt=prompt, min_tokens=9, max_tokens=9, sampling=sampling))
    step = engine.plan_step(0)
    assert step is not None
    [row] = step.rows
    assert (row.sampling, row.history, row.banned_token_ids) == (None, None, ())
    engine.complete_step(draw(step), 0)
    run(engine, token_id=50)
    step = engine.plan_step(0)
    assert step is not None
    [row] = step.rows
    assert row.banned_token_ids == (EOS,)
    assert row.history is not None
    assert row.history.token_ids == (*prompt, 50)
    assert row.history.output_token_ids == (50,)


@pytest.mark.parametrize("num_tokens_before", [0, 1, 3])
def test_an_abort_during_a_step_takes_effect_when_the_step_ends(num_tokens_before: int) -> None:
    """In the first chunk of its prompt, in the last, while it decodes."""
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("r", prompt=6, adapter_name="a"), make_sequence("other", prompt=1))
    load_all(engine)
    for _ in range(num_tokens_before):
        run(engine)
    step = engine.plan_step(0)
    assert step is not None
    assert engine.abort(RequestId("r"), 0) is None
    assert engine.abort(RequestId("r"), 0) is None
    outputs = {str(o.sequence.request_id): o for o in engine.complete_step(draw(step), 0)}
    assert (outputs["r"].ending, outputs["r"].token_id) == (Ending.ABORT, None)
    assert outputs["r"].sequence.phase is Phase.FINISHED
    assert "r" not in engine
    assert not engine.memory.adapters.is_pinned(A)
    engine.check_invariants()
    run(engine)


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3])
def test_an_abort_between_steps_takes_effect_at_once(num_steps: int) -> None:
    """While it waits, in the midst of its prompt, while it decodes."""
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("r", prompt=6, adapter_name="a"))
    load_all(engine)
    for _ in range(num_steps):
        run(engine)
    ended = engine.abort(RequestId("r"), 0)
    assert ended is not None
    assert ended.phase is Phase.FINISHED
    assert engine.memory.blocks.num_owned == 0
    assert engine.sequences == ()
    engine.check_invariants()
    assert engine.abort(RequestId("r"), 0) is None
    assert engine.plan_step(1) is None


def test_one_that_runs_but_has_no_row_in_the_step_is_aborted_at_once() -> None:
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("first", prompt=6), make_sequence("second", prompt=6))
    step = engine.plan_step(0)
    assert rows_of(step) == [("first", 0, 4)]
    ended = engine.abort(RequestId("second"), 0)
    assert ended is not None
    engine.check_invariants()
    assert step is not None
    engine.complete_step(draw(step), 0)
    assert rows_of(engine.plan_step(1)) == [("first", 4, 2)]


def test_an_abort_lets_go_of_the_adapter_that_was_waited_for() -> None:
    engine = make_engine(budget_bytes=20)
    add(engine, make_sequence("r", adapter_name="a"))
    load_all(engine)
    assert engine.abort(RequestId("r"), 0) is not None
    add(engine, make_sequence("other", adapter_name="c"))
    assert [load.evict for load in engine.plan_loads(1)] == [(A,)]


def test_an_aborted_sequence_of_a_broken_step_ends_with_the_others() -> None:
    engine = make_engine()
    add(engine, make_sequence("r"), make_sequence("s"))
    engine.plan_step(0)
    engine.abort(RequestId("r"), 0)
    assert [s.request_id for s in engine.fail_step(0)] == ["r", "s"]
    assert engine.sequences == ()


def test_a_broken_step_ends_its_sequences_only_and_leaves_nothing_of_theirs_to_be_found() -> None:
    engine = make_engine(max_num_seqs=1)
    prompt = list(range(10, 15))
    add(engine, make_sequence("breaks", prompt=prompt), make_sequence("next", prompt=prompt))
    engine.plan_step(0)
    assert [s.request_id for s in engine.fail_step(0)] == ["breaks"]
    engine.check_invariants()
    assert rows_of(engine.plan_step(1)) == [("next", 0, 5)]
