"""The engine core: loads and steps planned, results taken in."""

from anole_shared.ids import AdapterId, RequestId
from anole_worker.core.engine import Engine, LoadAdapter
from anole_worker.core.sequence import Ending, Phase
from anole_worker.core.step import Step
from tests.unit.worker.engines import EOS, draw, make_engine, make_sequence


def rows_of(step: Step | None) -> list[tuple[str, int, int]]:
    """(request, first position, number of new tokens) of each row."""
    assert step is not None
    return [(row.request_id, row.start, len(row.token_ids)) for row in step.rows]


def run_to_end(engine: Engine) -> dict[str, Ending]:
    """Run steps (and loads, at once) until nothing is left."""
    endings: dict[str, Ending] = {}
    for now in range(200):
        for load in engine.plan_loads(now):
            engine.adapter_loaded(load.adapter_id)
        step = engine.plan_step(now)
        if step is None:
            break
        for output in engine.complete_step(draw(step), now):
            if output.ending is not None:
                endings[output.sequence.request_id] = output.ending
        engine.check_invariants()
    return endings


def test_a_prompt_runs_in_chunks_and_draws_a_token_only_at_its_end() -> None:
    engine = make_engine(token_budget=4)
    engine.add(make_sequence("r", prompt=6, max_tokens=2))
    step = engine.plan_step(0)
    assert rows_of(step) == [("r", 0, 4)]
    assert step is not None
    assert step.rows[0].sampling is None
    assert engine.complete_step([None], 0) == []
    step = engine.plan_step(1)
    assert rows_of(step) == [("r", 4, 2)]
    (output,) = engine.complete_step([7], 1)
    assert (output.token_id, output.ending) == (7, None)
    assert rows_of(engine.plan_step(2)) == [("r", 6, 1)]
    (output,) = engine.complete_step([8], 2)
    assert output.ending is Ending.LENGTH
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_decodes_come_before_prompt_chunks_within_the_budget() -> None:
    engine = make_engine(token_budget=4)
    engine.add(make_sequence("old", prompt=3))
    first = engine.plan_step(0)
    assert first is not None
    engine.complete_step(draw(first), 0)
    engine.add(make_sequence("new", prompt=10))
    assert sorted(rows_of(engine.plan_step(1))) == [("new", 0, 3), ("old", 3, 1)]


def test_rows_of_one_adapter_are_contiguous_and_base_rows_come_first() -> None:
    engine = make_engine(token_budget=50, max_num_seqs=8, num_blocks=64)
    for index, adapter in enumerate(["b", None, "a", "b", None, "a"]):
        engine.add(make_sequence(f"r{index}", adapter=adapter))
    for load in engine.plan_loads(0):
        engine.adapter_loaded(load.adapter_id)
    step = engine.plan_step(0)
    assert step is not None
    assert [row.adapter_id for row in step.rows] == [None, None, "a", "a", "b", "b"]


def test_a_sequence_waits_for_its_adapter_while_others_go_on() -> None:
    engine = make_engine()
    engine.add(make_sequence("needs", adapter="a"))
    engine.add(make_sequence("base"))
    expected = LoadAdapter(adapter_id=AdapterId("a"), evict=(), request_id=RequestId("needs"))
    assert engine.plan_loads(0) == [expected]
    assert engine.plan_loads(0) == []
    step = engine.plan_step(0)
    assert rows_of(step) == [("base", 0, 3)]
    assert step is not None
    engine.adapter_loaded(AdapterId("a"))
    engine.complete_step(draw(step), 0)
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["base", "needs"]


def test_where_there_is_no_room_for_an_adapter_no_later_one_takes_it() -> None:
    engine = make_engine(sizes={"a": 20, "b": 15, "c": 5}, adapter_budget=20)
    engine.add(make_sequence("first", adapter="a"))
    assert len(engine.plan_loads(0)) == 1
    engine.adapter_loaded(AdapterId("a"))
    engine.add(make_sequence("large", adapter="b"))
    engine.add(make_sequence("small", adapter="c"))
    assert engine.plan_loads(1) == []
    assert rows_of(engine.plan_step(1)) == [("first", 0, 3)]


def test_passing_ends_after_a_time_so_that_nobody_starves() -> None:
    engine = make_engine(sizes={"a": 20, "b": 15}, adapter_budget=20, max_num_seqs=8)
    engine.add(make_sequence("holder", adapter="a", max_tokens=20))
    engine.plan_loads(0)
    engine.adapter_loaded(AdapterId("a"))
    engine.add(make_sequence("starved", adapter="b", arrived_s=0.0))
    engine.add(make_sequence("passes", adapter="a", arrived_s=1.0))
    engine.plan_loads(1)
    step = engine.plan_step(1)
    assert [row[0] for row in rows_of(step)] == ["holder", "passes"]
    assert step is not None
    engine.complete_step(draw(step), 1)
    engine.add(make_sequence("base", arrived_s=1.5))
    step = engine.plan_step(1.5)
    assert "base" in [row[0] for row in rows_of(step)]
    assert step is not None
    engine.complete_step(draw(step), 1.5)
    engine.add(make_sequence("late", arrived_s=2.5))
    engine.add(make_sequence("late too", adapter="a", arrived_s=2.5))
    engine.plan_loads(2.5)
    assert not {"late", "late too"} & {row[0] for row in rows_of(engine.plan_step(2.5))}


def test_a_sequence_starts_only_when_all_its_blocks_are_free_and_is_not_passed() -> None:
    engine = make_engine(num_blocks=3)
    engine.add(make_sequence("two blocks", prompt=4, max_tokens=4))
    engine.add(make_sequence("waits", prompt=4, max_tokens=4))
    engine.add(make_sequence("would fit", prompt=1, max_tokens=1))
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["two blocks"]


def test_the_end_token_ends_a_sequence_unless_told_to_ignore_it() -> None:
    engine = make_engine()
    engine.add(make_sequence("stops", max_tokens=4))
    engine.add(make_sequence("goes on", max_tokens=4, ignore_eos=True))
    step = engine.plan_step(0)
    assert step is not None
    outputs = {o.sequence.request_id: o for o in engine.complete_step(draw(step, EOS), 0)}
    assert outputs[RequestId("stops")].ending is Ending.STOP
    assert outputs[RequestId("goes on")].ending is None


def test_an_abort_during_a_step_takes_effect_when_the_step_ends() -> None:
    engine = make_engine()
    engine.add(make_sequence("r"))
    step = engine.plan_step(0)
    assert step is not None
    assert engine.abort(RequestId("r"), 0) is None
    (output,) = engine.complete_step(draw(step), 0)
    assert (output.ending, output.token_id) == (Ending.ABORT, None)
    assert engine.blocks.num_free == engine.blocks.num_blocks


def test_an_abort_while_waiting_takes_effect_at_once_and_unpins() -> None:
    engine = make_engine(sizes={"a": 20, "b": 20}, adapter_budget=20)
    engine.add(make_sequence("r", adapter="a"))
    engine.plan_loads(0)
    engine.adapter_loaded(AdapterId("a"))
    ended = engine.abort(RequestId("r"), 0)
    assert ended is not None
    assert ended.phase is Phase.FINISHED
    engine.add(make_sequence("other", adapter="b"))
    (load,) = engine.plan_loads(1)
    assert load.evict == ("a",)
    assert engine.abort(RequestId("unknown"), 0) is None


def test_a_failed_load_ends_those_who_waited_for_it_and_nobody_else() -> None:
    engine = make_engine()
    engine.add(make_sequence("r", adapter="a"))
    engine.add(make_sequence("other", adapter="b"))
    engine.plan_loads(0)
    assert [s.request_id for s in engine.adapter_failed(AdapterId("a"), 0)] == ["r"]
    engine.adapter_loaded(AdapterId("b"))
    assert [row[0] for row in rows_of(engine.plan_step(0))] == ["other"]
    engine.check_invariants()


def test_victims_of_a_failed_load_that_were_not_dropped_are_here_again() -> None:
    engine = make_engine(sizes={"a": 10, "b": 10, "c": 20}, adapter_budget=20)
    for name in ("a", "b"):
        engine.prefetch(AdapterId(name))
    for load in engine.plan_loads(0):
        engine.adapter_loaded(load.adapter_id)
    engine.add(make_sequence("r", adapter="c"))
    (load,) = engine.plan_loads(1)
    assert load.evict == ("a", "b")
    engine.adapter_failed(AdapterId("c"), 1)
    assert engine.take_back(["b"], 1) == []
    assert engine.adapters.resident() == ("b",)
    engine.check_invariants()


def test_a_victim_whose_room_is_claimed_by_now_is_not_taken_back() -> None:
    engine = make_engine(sizes={"a": 20, "b": 5, "c": 15}, adapter_budget=20)
    engine.prefetch(AdapterId("a"))
    engine.plan_loads(0)
    engine.adapter_loaded(AdapterId("a"))
    engine.add(make_sequence("r", adapter="b"))
    engine.add(make_sequence("s", adapter="c"))
    assert [load.evict for load in engine.plan_loads(1)] == [("a",), ()]
    engine.adapter_failed(AdapterId("b"), 1)
    assert engine.take_back(["a"], 1) == ["a"]
    assert engine.adapters.resident() == ()
    engine.check_invariants()


def test_a_broken_step_ends_its_sequences_only() -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add(make_sequence("breaks"))
    engine.add(make_sequence("next"))
    engine.plan_step(0)
    assert [s.request_id for s in engine.fail_step(0)] == ["breaks"]
    assert [row[0] for row in rows_of(engine.plan_step(1))] == ["next"]


def test_what_can_never_run_is_refused_with_the_numbers() -> None:
    engine = make_engine(num_blocks=2, sizes={"huge": 99}, max_num_waiting=1)
    assert "needs 3 KV blocks" in str(engine.refusal(make_sequence("r", prompt=8, max_tokens=4)))
    assert "not in this worker's" in str(engine.refusal(make_sequence("r", adapter="nope")))
    assert "ANOLE_WORKER_ADAPTER_BYTES" in str(engine.refusal(make_sequence("r", adapter="huge")))
    assert "prompt is empty" in str(engine.refusal(make_sequence("r", prompt=0)))
    alien = make_sequence("r")
    alien.token_ids[0] = 100
    assert "outside 0..99" in str(engine.refusal(alien))
    engine.add(make_sequence("first"))
    assert "wait here already" in str(engine.refusal(make_sequence("second")))


def test_prefetch_takes_idle_room_only() -> None:
    engine = make_engine(sizes={"a": 15, "b": 15}, adapter_budget=20)
    engine.prefetch(AdapterId("a"))
    engine.prefetch(AdapterId("unknown"))
    (load,) = engine.plan_loads(0)
    assert (load.adapter_id, load.request_id) == ("a", None)
    engine.adapter_loaded(AdapterId("a"))
    engine.prefetch(AdapterId("b"))
    assert engine.plan_loads(1) == []


def test_more_sequences_than_places_all_end() -> None:
    engine = make_engine(sizes={"a": 10, "b": 10, "c": 10}, adapter_budget=20, num_blocks=6)
    names = [f"r{index}" for index in range(20)]
    for index, name in enumerate(names):
        engine.add(make_sequence(name, adapter=(None, "a", "b", "c")[index % 4]))
    assert run_to_end(engine) == dict.fromkeys(names, Ending.LENGTH)
