"""The policy anole: events in, commands out."""

from dataclasses import replace
from typing import Any

from anole_scheduler.core.commands import Prefetch
from anole_scheduler.core.knobs import PolicyKnobs
from anole_scheduler.core.pace import Pace
from anole_scheduler.core.policies.virtual_deadline import Shares, VirtualDeadline
from anole_scheduler.core.residency import Residency
from tests.unit.scheduler.playbook import CAPACITY, Playbook, adapter, kinds, placed, waiting

ROOMY = replace(CAPACITY, max_num_seqs=64)


def anole(*, limits: dict[str, Any] | None = None, **knobs: Any) -> Playbook:
    bounds = {"admit_ahead": 0, "max_prefetch": 0, "max_waiting": 64, "max_unfinished": 99}
    known = (adapter("a"), adapter("b"), adapter("c"))
    play = Playbook(
        policy="anole", knobs=PolicyKnobs(**knobs), adapters=known, **bounds | (limits or {})
    )
    play.seen("w1", capacity=ROOMY)
    play.found(*known)
    return play


def test_a_request_whose_adapter_is_absent_steps_aside_and_its_load_is_asked_for() -> None:
    play = anole()
    (prefetch,) = play.arrive("r1", adapter_id="a")
    assert prefetch == Prefetch(worker_id="w1", adapter_id="a", request_id="r1")
    assert placed(play.arrive("r2")) == [("r2", "w1")], "the base model passes"
    assert placed(play.moved("a", Residency.RESIDENT)) == [("r1", "w1")]


def test_several_that_need_one_adapter_ask_once_and_start_in_order() -> None:
    play = anole()
    assert kinds(play.arrive("r1", adapter_id="a")) == ["Prefetch"]
    assert play.later(0.1).arrive("r2", adapter_id="a") == []
    assert play.moved("a", Residency.LOADING) == []
    assert placed(play.moved("a", Residency.RESIDENT)) == [("r1", "w1"), ("r2", "w1")]


def test_only_so_many_loads_are_on_their_way_and_the_next_follows() -> None:
    play = anole(limits={"max_loads": 1})
    assert kinds(play.arrive("r1", adapter_id="a")) == ["Prefetch"]
    assert play.arrive("r2", adapter_id="b") == []
    commands = play.moved("a", Residency.RESIDENT)
    assert kinds(commands) == ["Prefetch", "Admit"]
    assert placed(commands) == [("r1", "w1")]


def test_nobody_passes_one_that_has_stood_aside_for_long() -> None:
    play = anole(overtake_s=2.0)
    play.arrive("r1", adapter_id="a", num_prompt_tokens=400, max_tokens=100)  # 320 + 100 bytes
    passing = play.later(1).arrive("big", num_prompt_tokens=800, max_tokens=200)  # 630 of 1000
    assert placed(passing) == [("big", "w1")]
    assert placed(play.later(2).arrive("late")) == [], "r1 is the head, and has no room"
    assert placed(play.end("big")) == [("r1", "w1"), ("late", "w1")]


def test_waiting_for_a_load_again_does_not_give_others_more_time_to_pass() -> None:
    play = anole(overtake_s=2.0)
    play.arrive("r1", adapter_id="a")
    play.later(1.5).moved("a", Residency.LOADING)
    assert placed(play.later(0.5).tick()) == [("r1", "w1")]


def test_an_adapter_that_was_asked_for_and_did_not_come_is_left_to_the_worker() -> None:
    play = anole()
    play.arrive("r1", adapter_id="a")
    assert placed(play.moved("a", Residency.ABSENT)) == [("r1", "w1")]


def test_no_more_than_the_depth_step_aside() -> None:
    play = anole(overtake_depth=1)
    play.arrive("r1", adapter_id="a")
    assert play.arrive("r2", adapter_id="b") == []
    assert placed(play.arrive("r3")) == [], "r2 lets nobody pass"
    commands = play.moved("a", Residency.RESIDENT)
    assert placed(commands) == [("r1", "w1"), ("r3", "w1")]


def test_a_request_that_stands_aside_can_be_cancelled() -> None:
    play = anole()
    play.arrive("r1", adapter_id="a")
    assert kinds(play.cancel("r1")) == ["Done"]
    assert play.scheduler.num_waiting == 0


def test_loads_that_were_lost_with_a_worker_are_asked_for_elsewhere() -> None:
    play = anole()
    play.arrive("r1", adapter_id="a")
    play.seen("w2", capacity=ROOMY)
    assert placed(play.gone("w1")) == [("r1", "w2")]


def test_an_adapter_is_loaded_once_more_where_there_is_room() -> None:
    play = anole()
    play.moved("a", Residency.RESIDENT)
    play.arrive("big", num_prompt_tokens=800, max_tokens=200, adapter_id="a")
    play.arrive("r1", num_prompt_tokens=800, max_tokens=100, adapter_id="a")
    play.seen("w2", capacity=ROOMY)
    play.arrive("base")
    assert play.scheduler.num_waiting == 1
    assert placed(play.moved("a", Residency.RESIDENT, worker="w2")) == [("r1", "w2")]


def test_the_worker_that_has_the_adapter_is_preferred_to_a_load() -> None:
    play = anole()
    play.seen("w2", capacity=ROOMY)
    play.arrive("r0")
    play.moved("a", Residency.RESIDENT, worker="w1")
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w1")]


def test_what_costs_more_has_a_later_deadline_once_something_is_known() -> None:
    pace, shares = Pace(), Shares()
    order = VirtualDeadline(5.0, pace, shares)
    small, large = waiting("s", max_tokens=10), waiting("l", max_tokens=100)
    assert order.key(small, 0.0) == order.key(large, 0.0) == 0.0
    pace.learn(waiting("x", num_output_tokens=10), now=1.0)
    assert order.key(small, 0.0) < order.key(large, 0.0)


def test_the_share_is_of_the_seats_in_use_or_of_the_memory() -> None:
    shares = Shares()
    for _ in range(1000):
        shares.learn(num_running=10, bytes_per_token=1.0, memory_bytes=1000)
    small, large = waiting(num_prompt_tokens=1, max_tokens=1), waiting(num_prompt_tokens=400)
    assert round(shares.of(small), 3) == 0.1
    assert round(shares.of(large), 3) == 0.416


def test_where_nobody_may_step_aside_the_worker_loads_what_the_first_in_line_needs() -> None:
    play = anole(overtake_depth=0)
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w1")]


def test_a_declined_load_is_not_asked_for_again_because_another_host_has_a_copy() -> None:
    play = anole()
    play.arrive("big", num_prompt_tokens=800, max_tokens=200)
    play.moved("a", Residency.HOST, worker="w1")
    play.seen("w2", capacity=ROOMY)
    play.found(adapter("a"), worker="w2")
    asked = play.arrive("r1", num_prompt_tokens=800, max_tokens=200, adapter_id="a")
    assert kinds(asked) == ["Prefetch"]
    assert placed(play.moved("a", Residency.ABSENT, worker="w2")) == [("r1", "w2")]


def test_nobody_waits_for_an_adapter_that_comes_to_a_worker_that_drains() -> None:
    play = anole()
    play.arrive("r1", adapter_id="a")
    play.seen("w1", capacity=ROOMY, loading=("a",), is_draining=True)
    play.seen("w2", capacity=ROOMY)
    play.found(adapter("a"), worker="w2")
    (prefetch,) = play.later(0.1).arrive("r2", adapter_id="a")
    assert prefetch == Prefetch(worker_id="w2", adapter_id="a", request_id="r2")


def test_a_declined_load_is_not_asked_for_again_because_a_full_worker_has_the_adapter() -> None:
    play = anole()
    play.moved("a", Residency.RESIDENT)
    play.arrive("big", num_prompt_tokens=800, max_tokens=200, adapter_id="a")
    play.seen("w2", capacity=ROOMY)
    play.found(adapter("a"), worker="w2")
    asked = play.arrive("r1", num_prompt_tokens=800, max_tokens=100, adapter_id="a")
    assert kinds(asked) == ["Prefetch"]
    assert placed(play.moved("a", Residency.ABSENT, worker="w2")) == [("r1", "w2")]
