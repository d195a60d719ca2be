"""The engine core: which sequences start, what a step runs, and how sequences end."""

from collections.abc import Iterable

import pytest

from anole_shared.ids import RequestId
from anole_worker.core.engine import Engine, Output
from anole_worker.core.loading import LoadAdapter
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Ending, Phase, Sequence
from anole_worker.core.step import Sampling, Step
from tests.unit.worker.engines import EOS, adapter, draw, make_engine, make_sequence

A, B, C, D = (adapter(name) for name in "abcd")


def add(engine: Engine, *sequences: Sequence, now: float = 0.0) -> None:
    for sequence in sequences:
        assert engine.refusal(sequence) is None
        engine.add(sequence, now)


def load_all(engine: Engine, now: float = 0.0) -> list[LoadAdapter]:
    """Carry out at once what is to be loaded."""
    loads = engine.plan_loads(now)
    for load in loads:
        engine.adapter_loaded(load.adapter)
    return loads


def rows_of(step: Step | None) -> list[tuple[str, int, int]]:
    """(request, first position, number of new tokens) of each row."""
    assert step is not None
    return [(row.request_id, row.start, len(row.token_ids)) for row in step.rows]


def run(engine: Engine, now: float = 0.0, token_id: int = 9) -> list[Output]:
    """One step, with the same token for all."""
    step = engine.plan_step(now)
    assert step is not None
    outputs = engine.complete_step(draw(step, token_id), now)
    engine.check_invariants()
    return outputs


def endings(outputs: Iterable[Output]) -> dict[str, Ending | None]:
    return {output.sequence.request_id: output.ending for output in outputs}


def test_a_prompt_runs_in_chunks_and_draws_a_token_only_at_its_end() -> None:
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("r", prompt=6, max_tokens=2))
    step = engine.plan_step(0)
    assert rows_of(step) == [("r", 0, 4)]
    assert step is not None
    assert step.rows[0].sampling is None
    assert engine.complete_step(draw(step), 0) == []
    step = engine.plan_step(1)
    assert rows_of(step) == [("r", 4, 2)]
    assert step is not None
    [output] = engine.complete_step(draw(step, 7), 1)
    assert (output.token_id, output.ending) == (7, None)
    step = engine.plan_step(2)
    assert rows_of(step) == [("r", 6, 1)]
    assert step is not None
    assert step.rows[0].token_ids == (7,)
    [output] = engine.complete_step(draw(step, 8), 2)
    assert output.ending is Ending.LENGTH
    assert engine.memory.blocks.num_owned == 0


def test_decodes_come_before_prompt_chunks_within_the_budget() -> None:
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("old", prompt=3))
    run(engine)
    add(engine, make_sequence("new", prompt=10))
    assert sorted(rows_of(engine.plan_step(1))) == [("new", 0, 3), ("old", 3, 1)]


def test_prompts_are_run_in_the_order_of_their_start() -> None:
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("first", prompt=6), make_sequence("second", prompt=5))
    run(engine)
    assert rows_of(engine.plan_step(1)) == [("first", 4, 2), ("second", 0, 2)]


def test_rows_of_one_content_are_contiguous_and_base_rows_come_first() -> None:
    engine = make_engine(token_budget=50, max_num_seqs=8, budget_bytes=99)
    names = ["b", None, "a", "b", None, "a"]
    add(engine, *(make_sequence(f"r{i}", adapter_name=name) for i, name in enumerate(names)))
    newer = make_sequence("newer")
    newer.adapter = adapter("a", generation="2")
    add(engine, newer)
    load_all(engine)
    load_all(engine)
    step = engine.plan_step(0)
    assert step is not None
    assert [row.adapter for row in step.rows] == [None, None, A, A, newer.adapter, B, B]


def test_no_more_sequences_run_than_there_are_places() -> None:
    engine = make_engine(max_num_seqs=2)
    add(engine, *(make_sequence(name, max_tokens=1) for name in "rst"))
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["r", "s"]
    assert engine.num_running == 2
    assert [s.request_id for s in engine.sequences] == ["r", "s", "t"]


def test_a_sequence_waits_for_its_adapter_while_others_go_on() -> None:
    engine = make_engine()
    add(engine, make_sequence("needs", adapter_name="a"), make_sequence("base"))
    expected = LoadAdapter(adapter=A, evict=(), request_id=RequestId("needs"))
    assert engine.plan_loads(0) == [expected]
    assert engine.plan_loads(0) == []
    step = engine.plan_step(0)
    assert rows_of(step) == [("base", 0, 3)]
    assert step is not None
    engine.adapter_loaded(A)
    engine.complete_step(draw(step), 0)
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["base", "needs"]


def test_passing_ends_after_a_time_so_that_nobody_starves() -> None:
    engine = make_engine(budget_bytes=30, max_num_seqs=8)
    add(engine, make_sequence("holder", adapter_name="d", max_tokens=20))
    load_all(engine)
    run(engine)
    add(engine, make_sequence("starved", adapter_name="c", arrived_s=1.0))
    add(engine, make_sequence("passes", adapter_name="d", arrived_s=1.5))
    assert load_all(engine, 1.5) == []
    assert set(endings(run(engine, 3.0))) == {"holder", "passes"}
    add(engine, make_sequence("late", arrived_s=3.0), now=3.0)
    assert load_all(engine, 3.01) == []
    assert set(endings(run(engine, 3.01))) == {"holder", "passes"}
    for name in ("holder", "passes"):
        assert engine.abort(RequestId(name), 4.0)
    assert [load.evict for load in load_all(engine, 4.0)] == [(D,)]
    assert [row[0] for row in rows_of(engine.plan_step(4.0))] == ["late", "starved"]


def test_a_sequence_that_waits_for_a_load_may_be_passed_however_long_that_takes() -> None:
    engine = make_engine(max_loads=1)
    add(engine, make_sequence("first", adapter_name="a"), make_sequence("second", adapter_name="b"))
    assert [load.adapter for load in engine.plan_loads(0)] == [A]
    add(engine, make_sequence("base"))
    assert engine.plan_loads(100) == []
    assert [row[0] for row in rows_of(engine.plan_step(100))] == ["base"]


def test_a_sequence_that_waits_for_blocks_is_never_passed() -> None:
    engine = make_engine(budget_bytes=3)
    add(engine, make_sequence("two blocks", prompt=5, max_tokens=3))
    add(engine, make_sequence("waits", prompt=5, max_tokens=3))
    add(engine, make_sequence("would fit", prompt=1, max_tokens=1))
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["two blocks"]


def test_a_sequence_starts_only_where_every_running_one_can_still_grow_by_a_block() -> None:
    engine = make_engine(budget_bytes=4)
    add(engine, *(make_sequence(name, prompt=4, max_tokens=8) for name in "rst"))
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["r", "s"]


def test_no_later_load_takes_the_memory_that_an_earlier_sequence_needs_for_its_blocks() -> None:
    engine = make_engine(budget_bytes=24)
    add(engine, make_sequence("runs", prompt=60, max_tokens=1))
    run(engine)
    add(engine, make_sequence("long", prompt=40, max_tokens=1))
    add(engine, make_sequence("later", adapter_name="a"))
    run(engine)
    engine.abort(RequestId("runs"), 1)
    assert engine.plan_loads(1) == []
    assert [row[0] for row in rows_of(engine.plan_step(1))] == ["long"]
    assert [load.adapter for load in engine.plan_loads(1)] == [A]


def test_an_earlier_sequences_adapter_does_not_go_for_a_later_ones_blocks() -> None:
    engine = make_engine(budget_bytes=24, max_loads=2)
    add(engine, make_sequence("first", adapter_name="a"), make_sequence("second", adapter_name="b"))
    [_, loading] = engine.plan_loads(0)
    engine.adapter_loaded(loading.adapter)
    long = make_sequence("long", prompt=60, max_tokens=1)
    add(engine, long)
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["second"]
    assert long.phase is Phase.WAITING
    assert engine.memory.collect_evicted() == ()


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


def test_a_failed_load_ends_those_who_waited_for_it_and_nobody_else() -> None:
    engine = make_engine()
    add(engine, make_sequence("r", adapter_name="a"), make_sequence("other", adapter_name="b"))
    add(engine, make_sequence("too", adapter_name="a"))
    engine.plan_loads(0)
    lost = engine.adapter_failed(A, 0)
    assert [s.request_id for s in lost] == ["r", "too"]
    assert {s.phase for s in lost} == {Phase.FINISHED}
    engine.adapter_loaded(B)
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["other"]
    engine.check_invariants()
    add(engine, make_sequence("again", adapter_name="a"))
    assert [load.adapter for load in engine.plan_loads(1)] == [A]


def test_victims_of_a_failed_load_that_were_not_dropped_are_here_again() -> None:
    engine = make_engine(budget_bytes=20)
    for each in (A, B):
        engine.prefetch(each, -100)
    for load in engine.plan_loads(-100):
        engine.adapter_loaded(load.adapter)
    add(engine, make_sequence("r", adapter_name="c"))
    [load] = engine.plan_loads(1)
    assert load.evict == (A, B)
    engine.adapter_failed(C, 1)
    assert engine.take_back([B]) == []
    assert engine.memory.adapters.adapters(Residency.RESIDENT) == (B,)
    engine.check_invariants()


def test_a_victim_whose_room_is_claimed_by_now_is_not_taken_back() -> None:
    engine = make_engine(budget_bytes=24)
    engine.prefetch(D, -100)
    [load] = engine.plan_loads(-100)
    engine.adapter_loaded(load.adapter)
    add(engine, make_sequence("r", adapter_name="a"), make_sequence("s", adapter_name="c"))
    assert [load.evict for load in engine.plan_loads(1)] == [(D,), ()]
    engine.adapter_failed(A, 1)
    assert engine.take_back([D]) == [D]
    assert engine.memory.adapters.adapters(Residency.RESIDENT) == ()
    engine.check_invariants()


def test_who_waits_for_a_replaced_adapter_waits_for_the_new_one() -> None:
    engine = make_engine(max_num_waiting=2)
    add(engine, make_sequence("r", adapter_name="a"), make_sequence("s", adapter_name="b"))
    engine.plan_loads(0)
    newer = adapter("a", generation="2")
    assert engine.adapter_replaced(A, newer, 0) == []
    assert engine.memory.adapters.residency(A) is Residency.ABSENT
    assert [load.adapter for load in load_all(engine)] == [newer]
    step = engine.plan_step(0)
    assert step is not None
    assert [row.adapter for row in step.rows] == [newer]
    engine.check_invariants()


def test_who_waits_for_a_replaced_adapter_ends_if_the_new_one_can_never_fit() -> None:
    engine = make_engine()
    add(engine, make_sequence("r", adapter_name="a"), make_sequence("s", adapter_name="b"))
    engine.plan_loads(0)
    large = adapter("a", generation="2", num_bytes=36)
    assert [s.request_id for s in engine.adapter_replaced(A, large, 0)] == ["r"]
    assert [s.request_id for s in engine.sequences] == ["s"]
    engine.check_invariants()


def test_whoever_runs_with_a_replaced_adapter_ends_with_it_and_new_ones_have_the_new() -> None:
    engine = make_engine(token_budget=50)
    prompt = list(range(10, 19))
    add(engine, make_sequence("old", adapter_name="a", prompt=prompt))
    load_all(engine)
    run(engine)
    newer = make_sequence("new", prompt=prompt)
    newer.adapter = adapter("a", generation="2")
    engine.retire(A)
    add(engine, newer)
    assert [load.adapter for load in load_all(engine)] == [newer.adapter]
    step = engine.plan_step(0)
    assert rows_of(step) == [("old", 9, 1), ("new", 0, 9)]
    assert step is not None
    assert [row.adapter for row in step.rows] == [A, newer.adapter]


def test_what_can_never_run_is_refused_with_the_numbers() -> None:
    engine = make_engine(budget_bytes=12, max_num_waiting=1)
    assert engine.refusal(make_sequence("r", prompt=40, max_tokens=9)) == (
        "it needs 13 KV blocks of 1 bytes and 0 bytes for its adapter, this worker's memory is "
        "12: ask for fewer tokens, or raise ANOLE_WORKER_MEMORY_BYTES"
    )
    assert engine.refusal(make_sequence("r", prompt=40, max_tokens=8)) is None
    both = engine.refusal(make_sequence("r", prompt=8, max_tokens=4, adapter_name="a"))
    assert "needs 3 KV blocks" in str(both)
    assert "10 bytes for its adapter" in str(both)
    for prompt in ([], [100], [-1]):
        refusal = engine.refusal(make_sequence("r", prompt=prompt))
        assert refusal == "its prompt is empty or has tokens outside 0..99"
    add(engine, make_sequence("first"))
    assert engine.refusal(make_sequence("second")) == "1 sequences wait here already"


def test_a_hint_for_what_can_never_fit_is_ignored() -> None:
    engine = make_engine(budget_bytes=20)
    engine.prefetch(adapter("huge", num_bytes=21), 0)
    engine.prefetch(D, 0)
    [load] = engine.plan_loads(0)
    assert (load.adapter, load.request_id) == (D, None)


def test_more_sequences_than_places_all_end() -> None:
    engine = make_engine(budget_bytes=24)
    names = [f"r{index}" for index in range(20)]
    for index, name in enumerate(names):
        add(engine, make_sequence(name, adapter_name=(None, "a", "b", "c")[index % 4]))
    ended: dict[str, Ending | None] = {}
    for now in range(200):
        load_all(engine, now)
        step = engine.plan_step(now)
        if step is None:
            break
        ended |= endings(o for o in engine.complete_step(draw(step), now) if o.ending)
        engine.check_invariants()
    assert ended == dict.fromkeys(names, Ending.LENGTH)
