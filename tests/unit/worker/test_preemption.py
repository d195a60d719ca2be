"""The engine where memory is short, and where prompts are alike: preempted, shared, scored."""

from collections.abc import Iterable

from anole_shared.ids import RequestId
from anole_worker.core.adapter import Adapter
from anole_worker.core.engine import Engine, Output
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Phase, Sequence
from anole_worker.core.step import Drawn, Row
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

EIGHT = [20, 21, 22, 23, 24, 25, 26, 27]


def names(sequences: Iterable[Sequence]) -> list[str]:
    return [sequence.request_id for sequence in sequences]


def generated(engine: Engine, sequences: list[Sequence]) -> dict[str, list[int]]:
    """What all of them generate, where each token depends on all before it."""
    add(engine, *sequences)
    by_id = {sequence.request_id: sequence.token_ids for sequence in sequences}

    def successor(row: Row) -> Drawn:
        seen = by_id[row.request_id][: row.start + len(row.token_ids)]
        token_id = 30 + sum(place * token for place, token in enumerate(seen)) % 60
        return Drawn(token_id=None if row.sampling is None else token_id)

    tokens: dict[str, list[int]] = {sequence.request_id: [] for sequence in sequences}
    for now in range(500):
        step = engine.plan_step(now)
        if step is None:
            return tokens
        for output in engine.complete_step([successor(row) for row in step.rows], now):
            assert output.token_id is not None
            tokens[output.sequence.request_id].append(output.token_id)
        engine.check_invariants()
    raise AssertionError("it does not end")


def three_in_little_memory() -> Engine:
    """Three sequences of 9 tokens that are about to need 3 of 8 blocks each."""
    engine = make_engine(budget_bytes=8, token_budget=50)
    add(engine, *(make_sequence(name, prompt=4, max_tokens=24) for name in "rst"))
    for _ in range(5):
        run(engine)
    assert [len(s.block_table) for s in engine.sequences] == [2, 2, 2]
    return engine


def test_where_blocks_run_out_the_youngest_waits_again_and_keeps_its_tokens() -> None:
    engine = three_in_little_memory()
    youngest = engine.sequences[2]
    assert youngest.phase is Phase.DECODE
    tokens = list(youngest.token_ids)
    assert len(tokens) == 9
    run(engine)
    assert names(engine.sequences) == ["r", "s", "t"]
    assert (youngest.phase, youngest.num_preemptions) == (Phase.WAITING, 1)
    assert engine.num_preemptions == 1
    assert youngest.token_ids == tokens
    assert youngest.block_table == []


def test_a_preempted_sequence_finds_what_is_left_of_its_prefix_and_goes_on_behind_it() -> None:
    engine = three_in_little_memory()
    youngest = engine.sequences[2]
    run(engine)
    engine.abort(RequestId("r"), 1)
    step = engine.plan_step(1)
    assert rows_of(step) == [("s", 9, 1), ("t", 8, 1)]
    assert step is not None
    assert step.rows[1].sampling is not None
    outputs = engine.complete_step(draw(step), 1)
    assert names(output.sequence for output in outputs) == ["s", "t"]
    assert youngest.phase is Phase.DECODE
    assert youngest.num_output_tokens == 6
    assert youngest.num_cached_tokens == 0


def test_a_preempted_sequence_keeps_its_place_before_all_that_came_later() -> None:
    engine = three_in_little_memory()
    add(engine, make_sequence("later", prompt=1, max_tokens=1))
    run(engine)
    assert names(engine.sequences) == ["r", "s", "t", "later"]
    engine.abort(RequestId("r"), 1)
    assert rows_of(engine.plan_step(1))[1][0] == "t"


def test_short_memory_changes_nothing_in_what_is_generated() -> None:
    def sequences() -> list[Sequence]:
        return [make_sequence(name, prompt=3 + i, max_tokens=20) for i, name in enumerate("rstuv")]

    short = make_engine(budget_bytes=9, token_budget=6)
    ample = make_engine(budget_bytes=99, token_budget=6)
    assert generated(short, sequences()) == generated(ample, sequences())
    assert short.num_preemptions > 0
    assert ample.num_preemptions == 0


def test_a_younger_one_in_the_midst_of_its_prompt_is_preempted_for_the_oldest() -> None:
    engine = make_engine(budget_bytes=8, token_budget=2)
    old, young = make_sequence("old", prompt=4, max_tokens=28), make_sequence("young", prompt=16)
    add(engine, old)
    for _ in range(7):
        run(engine)
    add(engine, young)
    phases = []
    while not engine.num_preemptions:
        phases.append(young.phase)
        run(engine)
    assert phases[-1] is Phase.PREFILL
    assert (old.num_preemptions, old.phase) == (0, Phase.DECODE)
    assert (young.num_preemptions, young.phase) == (1, Phase.WAITING)
    assert names(engine.sequences) == ["old", "young"]


def test_idle_adapters_and_known_prefixes_go_before_anybody_is_preempted() -> None:
    engine = make_engine(budget_bytes=14, token_budget=50)
    engine.prefetch(adapter("a"), -100)
    assert [load.adapter.adapter_id for load in load_all(engine, -100)] == ["a"]
    add(engine, make_sequence("r", prompt=12, max_tokens=40))
    for _ in range(20):
        run(engine)
    assert engine.num_preemptions == 0
    assert engine.memory.collect_evicted() == (adapter("a"),)


def test_a_waiting_sequences_adapter_goes_after_those_that_nobody_waits_for() -> None:
    """Also for the blocks of a running one, and though it was used longer ago."""
    engine = make_engine(budget_bytes=24, token_budget=50)
    wanted, unwanted = adapter("wanted", num_bytes=6), adapter("unwanted", num_bytes=6)
    engine.prefetch(wanted, -100)
    assert [load.adapter.adapter_id for load in load_all(engine, -100)] == ["wanted"]
    ends = make_sequence("ends", prompt=4, max_tokens=3)
    waits = make_sequence("waits", prompt=64)
    ends.adapter, waits.adapter = unwanted, wanted
    add(engine, make_sequence("grows", prompt=8, max_tokens=60), ends, waits)
    load_all(engine)
    evicted: list[Adapter] = []
    for now in range(1, 60):
        run(engine, now)
        assert waits.phase is Phase.WAITING
        evicted += engine.memory.collect_evicted()
        if evicted:
            break
    assert evicted == [unwanted]


def test_the_adapter_of_one_that_was_just_preempted_is_waited_for() -> None:
    engine = make_engine(budget_bytes=24, token_budget=50)
    old, young = adapter("old", num_bytes=0), adapter("young", num_bytes=9)
    first = make_sequence("first", prompt=40, max_tokens=20)
    second = make_sequence("second", prompt=4, max_tokens=20)
    first.adapter, second.adapter = old, young
    add(engine, first, second)
    load_all(engine)
    while not second.num_preemptions:
        run(engine)
    assert engine.memory.adapters.residency(young) is Residency.RESIDENT
    assert young in engine._waiting.adapters


def test_one_that_runs_alone_waits_for_memory_that_a_load_holds() -> None:
    engine = make_engine(budget_bytes=14, token_budget=50)
    add(engine, make_sequence("r", prompt=4, max_tokens=40))
    run(engine)
    engine.prefetch(adapter("a"), 0)
    [load] = engine.plan_loads(0)
    for _ in range(12):
        run(engine)
    assert engine.plan_step(0) is None
    assert engine.num_preemptions == 0
    engine.adapter_loaded(load.adapter)
    run(engine, 31)
    assert engine.memory.collect_evicted() == (load.adapter,)


def test_a_load_takes_no_memory_that_running_sequences_need_for_their_next_block() -> None:
    engine = make_engine(budget_bytes=12, token_budget=50)
    add(engine, make_sequence("r", prompt=8, max_tokens=4))
    run(engine)
    add(engine, make_sequence("s", adapter_name="a"))
    assert engine.plan_loads(1) == []
    larger = make_engine(budget_bytes=13, token_budget=50)
    add(larger, make_sequence("r", prompt=8, max_tokens=4))
    run(larger)
    add(larger, make_sequence("s", adapter_name="a"))
    assert len(larger.plan_loads(1)) == 1
    run(larger, 1)
    assert larger.num_preemptions == 0


def test_memory_that_blocks_gave_up_for_a_load_is_told_before_the_blocks_are_used_again() -> None:
    engine = make_engine(budget_bytes=12, token_budget=50)
    add(engine, make_sequence("r", prompt=40, max_tokens=1))
    run(engine)
    add(engine, make_sequence("s", adapter_name="a"))
    assert len(engine.plan_loads(1)) == 1
    stripped = engine.memory.collect_stripped()
    assert len(stripped) == 8
    engine.adapter_loaded(adapter("a"))
    add(engine, make_sequence("t", prompt=1, max_tokens=1))
    run(engine, 1)
    assert engine.memory.collect_stripped() == ()


def test_a_longer_prompt_computes_only_what_is_behind_a_shorter_one() -> None:
    engine = make_engine(token_budget=50)
    add(engine, make_sequence("short", prompt=[*EIGHT, 28]))
    run(engine)
    longer = make_sequence("long", prompt=[*EIGHT, 28, 29, 30])
    add(engine, longer)
    assert sorted(rows_of(engine.plan_step(0))) == [("long", 8, 3), ("short", 9, 1)]
    assert longer.num_cached_tokens == 8


def test_of_two_equal_prompts_in_one_step_one_is_computed_and_the_other_has_the_rest() -> None:
    engine = make_engine(token_budget=50)
    first = make_sequence("first", prompt=[*EIGHT, 28])
    second = make_sequence("second", prompt=[*EIGHT, 28])
    add(engine, first, second)
    assert rows_of(engine.plan_step(0)) == [("first", 0, 9)]
    engine.complete_step(draw(engine._in_step), 0)
    assert rows_of(engine.plan_step(0)) == [("first", 9, 1), ("second", 8, 1)]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)


def test_two_equal_long_prompts_are_computed_once_also_over_several_chunks() -> None:
    engine = make_engine(token_budget=6, budget_bytes=99)
    prompt = list(range(10, 40))
    add(engine, make_sequence("first", prompt=prompt, max_tokens=1))
    add(engine, make_sequence("second", prompt=prompt, max_tokens=1))
    num_tokens = 0
    for _ in range(20):
        step = engine.plan_step(0)
        if step is None:
            break
        num_tokens += sum(len(row.token_ids) for row in step.rows)
        engine.complete_step(draw(step), 0)
    assert engine.sequences == ()
    assert num_tokens == 30 + 2  # the second's last block is not whole


def test_the_other_prompt_goes_on_by_itself_where_the_first_is_aborted() -> None:
    engine = make_engine(token_budget=6)
    prompt = list(range(10, 24))
    add(engine, make_sequence("first", prompt=prompt), make_sequence("second", prompt=prompt))
    run(engine)
    engine.abort(RequestId("first"), 0)
    assert rows_of(engine.plan_step(0)) == [("second", 4, 6)]


def test_the_next_turn_of_a_conversation_finds_what_was_generated_in_the_last() -> None:
    engine = make_engine(token_budget=50)
    first = make_sequence("first", prompt=EIGHT[:6], max_tokens=4)
    add(engine, first)
    for _ in range(4):
        run(engine)
    assert engine.sequences == ()
    turn = make_sequence("turn", prompt=[*first.token_ids, 40, 41, 42])
    add(engine, turn)
    assert rows_of(engine.plan_step(0)) == [("turn", 8, 5)]
    assert turn.num_cached_tokens == 8


def test_equal_prompts_of_different_adapters_are_computed_each() -> None:
    engine = make_engine(token_budget=50)
    for name in ("a", "b", None):
        add(engine, make_sequence(f"r {name}", prompt=EIGHT, adapter_name=name))
    load_all(engine)
    starts = [(start, count) for _, start, count in rows_of(engine.plan_step(0))]
    assert starts == [(0, 8)] * 3


def told(outputs: list[Output]) -> dict[str, list[int]]:
    """The prompt tokens that were told of: a made up log probability is minus its token."""
    return {
        output.sequence.request_id: [int(-scored.logprob) for scored in output.prompt_logprobs]
        for output in outputs
    }


def test_a_prompts_log_probabilities_come_with_the_first_token_from_all_chunks() -> None:
    engine = make_engine(token_budget=4)
    add(engine, make_sequence("r", prompt=[*EIGHT, 28], prompt_logprobs=3))
    step = engine.plan_step(0)
    assert step is not None
    score = step.rows[0].score
    assert score is not None
    assert (score.token_ids, score.num_top) == (tuple(EIGHT[1:5]), 3)
    assert engine.complete_step(draw(step), 0) == []
    assert run(engine) == []
    assert told(run(engine)) == {"r": [*EIGHT[1:], 28]}
    step = engine.plan_step(0)
    assert step is not None
    assert step.rows[0].score is None
    assert told(engine.complete_step(draw(step), 0)) == {"r": []}


def test_a_scored_prompt_is_computed_whole_though_it_is_known() -> None:
    engine = make_engine(token_budget=50)
    add(engine, make_sequence("r", prompt=EIGHT))
    run(engine)
    scored = make_sequence("s", prompt=EIGHT, prompt_logprobs=0)
    add(engine, scored)
    assert sorted(rows_of(engine.plan_step(0))) == [("r", 8, 1), ("s", 0, 8)]
    assert told(engine.complete_step(draw(engine._in_step), 0)) == {"r": [], "s": EIGHT[1:]}
    assert scored.num_cached_tokens == 0


def test_a_prompt_that_was_preempted_half_scored_is_scored_anew() -> None:
    engine = make_engine(budget_bytes=8, token_budget=5)
    old = make_sequence("old", prompt=4, max_tokens=16)
    add(engine, old)
    for _ in range(4):
        run(engine)
    scored = make_sequence("scored", prompt=[*EIGHT, *EIGHT, *EIGHT[:3]], prompt_logprobs=0)
    add(engine, scored)
    run(engine)
    assert scored.phase is Phase.PREFILL
    engine._preempt(scored, 0)
    assert scored.scored == []
    outputs: dict[str, list[int]] = {}
    for now in range(40):
        step = engine.plan_step(now)
        if step is None:
            break
        for name, tokens in told(engine.complete_step(draw(step), now)).items():
            outputs.setdefault(name, tokens)
    assert outputs["scored"] == scored.token_ids[1:19]


def test_one_that_was_preempted_after_its_first_token_is_not_scored_again() -> None:
    engine = make_engine(token_budget=50)
    scored = make_sequence("r", prompt=EIGHT, prompt_logprobs=0)
    add(engine, scored)
    run(engine)
    engine._preempt(scored, 0)
    step = engine.plan_step(0)
    assert rows_of(step) == [("r", 8, 1)]
    assert step is not None
    assert step.rows[0].score is None
    assert told(engine.complete_step(draw(step), 0)) == {"r": []}
