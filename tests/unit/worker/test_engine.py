"""The engine core: which sequences start, what a step runs, and how sequences end."""

from collections.abc import Iterable

from anole_shared.ids import RequestId
from anole_worker.core.engine import Output
from anole_worker.core.loading import LoadAdapter
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Ending, Phase
from tests.unit.worker.engines import (
    adapter,
    add,
    draw,
    load_all,
    make_engine,
    make_sequence,
    rows_of,
    run,
)

A, B, C, D = (adapter(name) for name in "abcd")


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
    add(engine, newer, make_sequence("last", adapter_name="a"))
    load_all(engine)
    load_all(engine)
    step = engine.plan_step(0)
    assert step is not None
    assert [row.adapter for row in step.rows] == [None, None, A, A, A, newer.adapter, B, B]


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
    assert engine.plan_step(0) is not None
    assert [s.phase for s in engine.sequences] == [Phase.PREFILL, Phase.PREFILL, Phase.WAITING]


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


def test_an_adapter_stays_for_whoever_waits_for_blocks_to_run_with_it() -> None:
    engine = make_engine(budget_bytes=24)
    add(engine, make_sequence("runs", prompt=40, max_tokens=8))
    run(engine)
    add(engine, make_sequence("needs", prompt=20, adapter_name="a"))
    assert [load.adapter for load in load_all(engine)] == [A]
    add(engine, make_sequence("base", prompt=1, max_tokens=1))
    while "runs" in engine:
        run(engine)
        assert engine.memory.collect_evicted() == ()
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["needs"]
    assert engine.num_running == 2


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


def test_one_that_was_not_refused_may_come_though_others_have_filled_the_line_meanwhile() -> None:
    engine = make_engine(max_num_waiting=1)
    late = make_sequence("late")
    assert engine.refusal(late) is None
    add(engine, make_sequence("first"))
    engine.add(late, 0)
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["first", "late"]


def test_each_request_for_an_adapter_counts_as_a_use_when_it_comes() -> None:
    engine = make_engine()
    add(engine, make_sequence("r", adapter_name="a"), make_sequence("base"), now=1)
    add(engine, make_sequence("s", adapter_name="a"), now=2)
    usage = engine.memory.adapters.usage(A, 2)
    assert usage.last_used_s == 2
    assert 1.9 < usage.count < 2


def test_a_hint_for_what_can_never_fit_is_ignored() -> None:
    engine = make_engine(budget_bytes=20)
    engine.prefetch(adapter("huge", num_bytes=21), 0)
    engine.prefetch(D, 0)
    [load] = engine.plan_loads(0)
    assert (load.adapter, load.request_id) == (D, None)
    assert [declined.adapter_id for declined in engine.collect_declined()] == ["huge"]
    assert engine.collect_declined() == ()


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


def test_an_adapter_that_nobody_here_waits_for_any_more_is_declined() -> None:
    engine = make_engine(max_loads=1)
    for name in ("a", "b", "b"):
        engine.add(make_sequence(f"{name}{len(engine.sequences)}", adapter_name=name), 0)
    assert [load.adapter.adapter_id for load in engine.plan_loads(0)] == ["a"]
    engine.abort(RequestId("b1"), 0)
    assert engine.collect_declined() == (), "another waits for it"
    engine.abort(RequestId("b2"), 0)
    engine.abort(RequestId("a0"), 0)
    assert [declined.adapter_id for declined in engine.collect_declined()] == ["b"], "a comes"


def test_a_hint_that_was_never_tried_is_declined_when_it_is_forgotten() -> None:
    engine = make_engine(max_loads=1)
    engine.add(make_sequence("r", adapter_name="a"), 0)
    engine.plan_loads(0)
    engine.prefetch(adapter("b"), 0)
    engine.add(make_sequence("base"), 40)
    engine.plan_step(40)
    assert [declined.adapter_id for declined in engine.collect_declined()] == ["b"]
