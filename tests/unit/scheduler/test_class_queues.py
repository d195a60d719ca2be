"""Chameleon's queues: events in, commands out."""

from dataclasses import replace
from typing import Any

import pytest

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.commands import AbortSequence, Fail, Failure
from anole_scheduler.core.knobs import ChargeRule, PolicyKnobs
from anole_scheduler.core.policies.class_queues import ClassQueues
from anole_shared.ids import RequestId
from tests.unit.scheduler.playbook import CAPACITY, Playbook, adapter, kinds, placed

ROOMY = replace(CAPACITY, max_num_seqs=64)
"""1000 bytes, 10 a block of 16 tokens: 1600 tokens."""

LARGE, MIDDLE, SMALL = (
    adapter("large", size_bytes=500),
    adapter("middle", size_bytes=400),
    adapter("small", size_bytes=100),
)


def chameleon(*adapters: Adapter, seats: int = 64, **knobs: Any) -> Playbook:
    asked = {"min_sample": 4, "charge_rule": ChargeRule.TOKENS} | knobs
    bounds = {"admit_ahead": 0, "max_prefetch": 0, "max_waiting": 64, "max_unfinished": 99}
    play = Playbook(policy="chameleon", knobs=PolicyKnobs(**asked), adapters=adapters, **bounds)
    play.seen("w1", capacity=replace(ROOMY, max_num_seqs=seats))
    if adapters:
        play.found(*adapters)
    return play


def queues(play: Playbook) -> ClassQueues:
    known = play.scheduler._queue
    assert isinstance(known, ClassQueues)
    return known


def teach_pace(play: Playbook) -> None:
    """16 tokens in, 16 out, took 10 s."""
    play.arrive("first")
    play.later(10).end("first")


def two_classes(*, seats: int = 64, **knobs: Any) -> Playbook:
    """Requests of 32 tokens and 6 s, and of 416 tokens and 0.5 s, half of each; nothing runs.

    So the classes get about half of the 1600 tokens each.
    """
    play = chameleon(seats=seats, **{"min_sample": 8, "slo_s": 5.0} | knobs)
    for number in range(4):
        play.arrive(f"s{number}", max_tokens=16)
        play.arrive(f"l{number}", max_tokens=400)
        play.later(0.5).end(f"l{number}", num_output_tokens=400)
        play.later(5.5).end(f"s{number}")
    play.arrive("due")
    play.end("due")
    assert queues(play)._classes.count == 2
    return play


def test_until_there_are_classes_requests_go_in_order_of_arrival() -> None:
    play = chameleon(min_sample=100)
    play.arrive("r0", num_prompt_tokens=700, max_tokens=300)
    play.arrive("r1", num_prompt_tokens=700, max_tokens=300)
    assert placed(play.arrive("r2")) == []
    assert placed(play.end("r0")) == [("r1", "w1"), ("r2", "w1")]


def test_a_small_request_does_not_wait_behind_large_ones() -> None:
    play = two_classes()
    large = [f"large{number}" for number in range(6)]
    started = [name for name in large if placed(play.arrive(name, max_tokens=400))]
    assert 0 < len(started) < len(large), "the class of large ones has used its quota up"
    assert placed(play.arrive("small", max_tokens=16)) == [("small", "w1")]


def test_what_an_empty_class_does_not_use_is_lent_and_not_more() -> None:
    strict, generous = two_classes(lends=False), two_classes()
    counts = []
    for play in (strict, generous):
        commands = [c for n in range(6) for c in play.arrive(f"large{n}", max_tokens=400)]
        counts.append(len(placed(commands)))
    assert counts[0] < counts[1] <= 1600 // 416


def test_a_loan_is_charged_to_the_borrower() -> None:
    play = two_classes()
    for number in range(3):
        play.arrive(f"large{number}", max_tokens=400)
    quotas = next(iter(queues(play)._accounts._quotas.values()))
    assert quotas.used == [0, 3 * 416]
    assert quotas.used[1] > quotas.allotted[1]
    assert quotas.available(1) == 0


def test_waiting_requests_are_sorted_in_again_in_order_of_arrival() -> None:
    play = chameleon(min_sample=6)
    play.arrive("running", num_prompt_tokens=1000, max_tokens=24)
    for number in range(3):
        play.later(1).arrive(f"s{number}", num_prompt_tokens=500, max_tokens=100)
        play.later(1).arrive(f"l{number}", num_prompt_tokens=1000, max_tokens=24)
    assert queues(play)._classes.count > 1
    order = [[p.request.request_id for p in queue.line] for queue in queues(play)._queues]
    assert all(names == sorted(names) for names in order)


@pytest.mark.parametrize(
    ("rule", "num_started"),
    [(ChargeRule.LITERAL, 2), (ChargeRule.SHARED, 3), (ChargeRule.TOKENS, 3)],
)
def test_a_shared_adapter_is_charged_as_the_rule_says(rule: ChargeRule, num_started: int) -> None:
    play = chameleon(MIDDLE, charge_rule=rule, min_sample=100)  # 400 bytes are 640 tokens
    commands = [c for n in range(3) for c in play.arrive(f"r{n}", adapter_id="middle")]
    assert len(placed(commands)) == num_started
    quotas = next(iter(queues(play)._accounts._quotas.values()))
    assert quotas.used == [{"literal": 2 * 672, "shared": 640 + 3 * 32, "tokens": 3 * 32}[rule]]


def test_a_request_larger_than_its_classs_share_runs_when_the_class_uses_nothing() -> None:
    play = chameleon(LARGE, charge_rule=ChargeRule.LITERAL, min_sample=100)
    play.seen("w1", capacity=replace(ROOMY, memory_bytes=1000))
    # 816 tokens for the adapter and 1000 of its own are more than the 1600 of the pool.
    sent = {"adapter_id": "large", "num_prompt_tokens": 780, "max_tokens": 20}
    assert placed(play.arrive("r0", **sent)) == [("r0", "w1")]
    assert placed(play.arrive("r1", **sent)) == []
    assert placed(play.end("r0")) == [("r1", "w1")]


# Passing.


def passed_head(**knobs: Any) -> tuple[Playbook, list[tuple[str, str]]]:
    """head needs the large adapter, for which a long request with the middle one has no room."""
    play = chameleon(LARGE, MIDDLE, SMALL, min_sample=100, **knobs)
    teach_pace(play)
    play.arrive("long", adapter_id="middle", num_prompt_tokens=16, max_tokens=304)
    assert placed(play.arrive("head", adapter_id="large")) == []
    return play, placed(play.arrive("other", adapter_id="middle", max_tokens=130))


def test_a_request_passes_one_for_whose_adapter_there_is_no_room_sooner() -> None:
    _, started = passed_head()
    assert started == [("other", "w1")]


def test_nobody_passes_where_that_is_switched_off() -> None:
    _, started = passed_head(bypasses=False)
    assert started == []


def test_nobody_passes_who_would_still_run_when_there_is_room() -> None:
    play = chameleon(LARGE, MIDDLE, min_sample=100)
    teach_pace(play)
    play.arrive("short", adapter_id="middle")
    play.arrive("head", adapter_id="large", num_prompt_tokens=100, max_tokens=60)
    assert placed(play.arrive("longer", adapter_id="middle", max_tokens=100)) == []


def test_nobody_passes_beyond_the_depth() -> None:
    play = chameleon(LARGE, MIDDLE, min_sample=100, bypass_depth=1)
    teach_pace(play)
    play.arrive("long", adapter_id="middle", max_tokens=304)
    play.arrive("head", adapter_id="large")
    play.arrive("also", adapter_id="large")
    assert placed(play.arrive("other", adapter_id="middle")) == []


def test_who_passed_is_squashed_where_it_alone_keeps_the_head_waiting() -> None:
    play, _ = passed_head(squash_share=1.0)
    commands = play.later(1).end("long")
    (abort,) = commands[1:]
    assert isinstance(abort, AbortSequence)
    assert abort.request_id == "other"
    commands = play.end("other", was_finished=False, num_output_tokens=3)
    fail = commands[0]
    assert isinstance(fail, Fail)
    assert fail.failure is Failure.SQUASHED
    assert placed(commands) == [("head", "w1")]


def test_a_squashed_request_comes_back_in_its_place_and_is_not_squashed_again() -> None:
    play, _ = passed_head(squash_share=1.0)
    play.later(1).end("long")
    play.later(1).end("other", was_finished=False)
    play.later(5).arrive("late", adapter_id="middle", max_tokens=130)
    play.arrive("other", attempt=1, adapter_id="middle", max_tokens=127)
    progress = play.scheduler._ledger.requests[RequestId("other")]
    assert progress.was_squashed
    assert [p.request.request_id for p in queues(play).upcoming(2)] == ["other", "late"]


def test_no_more_than_the_allowed_share_is_squashed() -> None:
    play, _ = passed_head(squash_share=0.05)
    assert kinds(play.later(1).end("long")) == ["Done"]


def test_a_squashed_request_that_ended_meanwhile_has_just_ended() -> None:
    play, _ = passed_head(squash_share=1.0)
    play.later(1).end("long")
    assert kinds(play.end("other")) == ["Done", "Admit"]


# Nobody starves.


def test_a_head_that_found_no_room_for_long_gets_a_worker_of_its_own() -> None:
    play = two_classes(patience_s=30, seats=2)
    play.arrive("x0")
    play.arrive("x1")
    play.arrive("large", max_tokens=400)
    started: list[str] = []
    while "large" not in started:
        number = len(started) + 2
        play.later(1).arrive(f"x{number}")
        started += [name for name, _ in placed(play.end(f"x{number - 2}"))]
        assert len(started) < 99, "small requests keep the large one waiting"
    assert started[:-1] == [f"x{number + 2}" for number in range(len(started) - 1)]
    assert len(started) >= 30


def test_classes_made_anew_do_not_make_a_head_wait_for_its_worker_again() -> None:
    play = chameleon(min_sample=2, refresh_s=4, patience_s=10)
    play.arrive("running", num_prompt_tokens=1000, max_tokens=24)
    play.arrive("head", num_prompt_tokens=1000, max_tokens=24)
    for number in range(12):
        play.later(1).arrive(f"r{number}", num_prompt_tokens=1000, max_tokens=24)
        play.arrive(f"s{number}")
        for name in ("running", "head"):
            assert RequestId(name) in play.scheduler._ledger.requests
    assert "head" in reserved(play)


def reserved(play: Playbook) -> list[RequestId | None]:
    return [worker.reserved_for for worker in play.scheduler._cluster.workers]


def test_a_reservation_ends_with_its_worker_and_with_its_request() -> None:
    play = chameleon(min_sample=100, patience_s=5)
    play.arrive("running", num_prompt_tokens=1000, max_tokens=24)
    play.arrive("head", num_prompt_tokens=1000, max_tokens=24)
    play.later(6).seen("w1", capacity=ROOMY, running=("running",), num_free_blocks=36)
    assert reserved(play) == ["head"]
    play.cancel("head")
    assert reserved(play) == [None]
    play.arrive("next", num_prompt_tokens=1000, max_tokens=24)
    play.later(6).seen("w1", capacity=ROOMY, running=("running",), num_free_blocks=36)
    play.gone("w1")
    play.seen("w2", capacity=replace(ROOMY, max_model_len=99))
    assert play.scheduler.num_waiting == 0
