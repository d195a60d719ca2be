"""The scheduler as a table: events in, commands out."""

from dataclasses import replace
from typing import Any

import pytest

from anole_scheduler.core.commands import (
    Admit,
    Command,
    Done,
    Fail,
    Failure,
    Prefetch,
)
from anole_scheduler.core.residency import Residency
from anole_shared.ids import RequestId
from tests.unit.scheduler.playbook import CAPACITY, Playbook, adapter, kinds, placed, request


def done(request_id: str = "r1", attempt: int = 0) -> Done:
    return Done(request_id=RequestId(request_id), attempt=attempt)


def failure_of(commands: list[Command]) -> Fail:
    fail, acknowledged = commands
    assert isinstance(fail, Fail)
    assert isinstance(acknowledged, Done)
    assert acknowledged.request_id == fail.request.request_id
    return fail


def test_a_request_goes_to_the_worker_that_is_there() -> None:
    play = Playbook()
    play.seen("w1")
    assert play.arrive("r1") == [Admit(worker_id="w1", request=request("r1"), residency=None)]
    assert play.end("r1") == [done("r1")]


def test_a_request_waits_for_a_first_worker() -> None:
    play = Playbook()
    assert play.arrive("r1") == []
    assert placed(play.seen("w1")) == [("r1", "w1")]


def test_requests_are_served_in_order_of_arrival() -> None:
    play = Playbook()
    for request_id in ("r3", "r1", "r2"):
        play.later(1).arrive(request_id)
    assert placed(play.seen("w1")) == [("r3", "w1"), ("r1", "w1"), ("r2", "w1")]


def test_requests_that_arrive_at_once_are_served_in_order_of_id() -> None:
    play = Playbook()
    for request_id in ("r3", "r1", "r2"):
        play.arrive(request_id)
    assert placed(play.seen("w1")) == [("r1", "w1"), ("r2", "w1"), ("r3", "w1")]


def test_a_worker_gets_what_it_can_start_and_admit_ahead_more() -> None:
    play = Playbook(admit_ahead=1)
    play.seen("w1")
    commands = [c for number in range(5) for c in play.later(1).arrive(f"r{number}")]
    assert placed(commands) == [("r0", "w1"), ("r1", "w1"), ("r2", "w1")]
    assert placed(play.end("r0")) == [("r3", "w1")]


def test_a_worker_without_free_blocks_is_full_whatever_its_seats() -> None:
    play = Playbook(admit_ahead=1)
    play.seen("w1")
    play.arrive("big", num_prompt_tokens=500, max_tokens=500)  # 63 of 100 blocks
    assert placed(play.arrive("ahead", num_prompt_tokens=500, max_tokens=500)) == [("ahead", "w1")]
    assert play.arrive("waits") == []
    assert placed(play.end("big")) == [("waits", "w1")]


def test_the_head_lets_nobody_pass() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1")
    play.arrive("r1", num_prompt_tokens=500, max_tokens=500)
    assert play.later(1).arrive("large", num_prompt_tokens=500, max_tokens=500) == []
    assert play.later(1).arrive("small") == []
    assert placed(play.end("r1")) == [("large", "w1"), ("small", "w1")]


def test_a_worker_that_starts_at_once_is_better_than_one_that_has_the_adapter() -> None:
    play = Playbook(admit_ahead=4)
    play.seen("w1", resident=("a",))
    play.seen("w2")
    commands = [c for n in range(3) for c in play.later(1).arrive(f"r{n}", adapter_id="a")]
    assert placed(commands) == [("r0", "w1"), ("r1", "w1"), ("r2", "w2")]


@pytest.mark.parametrize(
    ("at_w1", "at_w2", "chosen"),
    [
        (Residency.RESIDENT, Residency.LOADING, "w1"),
        (Residency.LOADING, Residency.RESIDENT, "w2"),
        (Residency.ABSENT, Residency.LOADING, "w2"),
        (Residency.ABSENT, Residency.RESIDENT, "w2"),
        (Residency.ABSENT, Residency.ABSENT, "w1"),
    ],
)
def test_a_request_goes_where_its_adapter_is(
    at_w1: Residency, at_w2: Residency, chosen: str
) -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.moved("a", at_w1, worker="w1")
    play.moved("a", at_w2, worker="w2")
    (admit,) = play.arrive("r1", adapter_id="a")
    assert isinstance(admit, Admit)
    assert admit.worker_id == chosen
    assert admit.residency is {"w1": at_w1, "w2": at_w2}[chosen]


def test_requests_without_an_adapter_spread_by_load() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    commands = [c for n in range(4) for c in play.later(1).arrive(f"r{n}")]
    assert placed(commands) == [("r0", "w1"), ("r1", "w2"), ("r2", "w1"), ("r3", "w2")]


def test_an_admitted_request_makes_its_adapter_expected_at_the_worker() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.arrive("r0")
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w2")]
    assert placed(play.later(1).arrive("r2", adapter_id="a")) == [("r2", "w2")]


# What never gets a worker.


def test_a_request_longer_than_any_worker_takes_fails_with_the_numbers() -> None:
    play = Playbook()
    play.seen("w1")
    fail = failure_of(play.arrive("r1", num_prompt_tokens=1000, max_tokens=25))
    assert fail.failure is Failure.TOO_LONG
    for number in ("1000", "25", "1025", "1024"):
        assert number in fail.message


def test_a_request_of_more_blocks_than_a_worker_has_is_too_long() -> None:
    play = Playbook()
    play.seen("w1", capacity=replace(CAPACITY, max_model_len=9999))
    assert failure_of(play.arrive("r1", num_prompt_tokens=1600, max_tokens=1)).failure is (
        Failure.TOO_LONG
    )
    assert placed(play.arrive("r2", num_prompt_tokens=1599, max_tokens=1)) == [("r2", "w1")]


def test_an_impossible_request_found_out_at_the_head_blocks_nobody() -> None:
    play = Playbook()
    play.arrive("long", num_prompt_tokens=2000)
    play.later(1).arrive("short")
    commands = play.seen("w1")
    assert kinds(commands) == ["Fail", "Done", "Admit"]
    assert placed(commands) == [("short", "w1")]


def test_an_adapter_in_no_folder_is_unknown() -> None:
    play = Playbook()
    play.seen("w1")
    play.found(adapter("a"))
    fail = failure_of(play.arrive("r1", adapter_id="b"))
    assert fail.failure is Failure.UNKNOWN_ADAPTER
    assert "'b'" in fail.message


def test_a_refused_adapter_fails_with_the_reason() -> None:
    play = Playbook()
    play.seen("w1")
    play.found(adapter("a", refused="its rank is 4096"))
    fail = failure_of(play.arrive("r1", adapter_id="a"))
    assert fail.failure is Failure.UNKNOWN_ADAPTER
    assert "its rank is 4096" in fail.message


def test_an_adapter_whose_worker_left_can_be_asked_for_again_later() -> None:
    play = Playbook()
    play.seen("w1")
    play.found(adapter("a"))
    play.seen("w2")
    play.gone("w1")
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w2")], "w2 may have it"
    play.found(adapter("b"), worker="w2")
    play.seen("w1")
    play.found(adapter("a"), worker="w1")
    play.gone("w1")
    fail = failure_of(play.arrive("r2", adapter_id="a"))
    assert fail.failure is Failure.NO_WORKER
    assert fail.retry_after_s is not None


def test_an_adapter_larger_than_every_adapter_memory_fails() -> None:
    play = Playbook()
    play.seen("w1")
    play.found(adapter("a", size_bytes=1001))
    assert failure_of(play.arrive("r1", adapter_id="a")).failure is Failure.ADAPTER_TOO_LARGE


def test_a_worker_gets_only_requests_for_adapters_in_its_folder() -> None:
    play = Playbook()
    play.seen("w1")
    play.found(adapter("b"), worker="w1")
    play.seen("w2")
    play.found(adapter("a"), worker="w2")
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w2")]


# Bounds.


def test_a_full_queue_refuses_with_advice_when_to_come_back() -> None:
    play = Playbook(max_waiting=2)
    play.arrive("r1")
    play.arrive("r2")
    fail = failure_of(play.arrive("r3"))
    assert fail.failure is Failure.QUEUE_FULL
    assert fail.retry_after_s == 5.0


def test_the_advice_follows_the_rate_at_which_requests_end() -> None:
    play = Playbook(max_waiting=8, admit_ahead=0)
    play.seen("w1")
    for number in range(10):
        play.arrive(f"r{number}")
    for number in range(4):
        play.later(2).end(f"r{number}")
        play.arrive(f"more{number}")
    assert failure_of(play.arrive("last")).retry_after_s == pytest.approx(8 * 6 / 4)


@pytest.mark.parametrize("again", [{"redelivered": True}, {"attempt": 1}])
def test_a_request_that_was_accepted_once_is_not_refused_for_a_full_queue(
    again: dict[str, Any],
) -> None:
    play = Playbook(max_waiting=1)
    play.arrive("r1")
    assert play.arrive("r2", **again) == []
    assert play.scheduler.num_waiting == 2


def test_no_more_than_max_unfinished_requests_are_kept_whoever_they_are() -> None:
    play = Playbook(max_unfinished=2)
    play.arrive("r1", redelivered=True)
    play.arrive("r2", redelivered=True)
    assert failure_of(play.arrive("r3", redelivered=True)).failure is Failure.QUEUE_FULL


def test_without_a_worker_requests_fail_after_the_timeout() -> None:
    play = Playbook(no_worker_timeout_s=30)
    play.arrive("r1")
    play.later(20).arrive("r2")
    assert play.later(9.9).tick() == []
    fail = failure_of(play.later(0.1).tick())
    assert fail.failure is Failure.NO_WORKER
    assert fail.request.request_id == "r1"
    assert fail.retry_after_s == 30


def test_the_wait_for_a_worker_starts_anew_when_the_last_one_leaves() -> None:
    play = Playbook(no_worker_timeout_s=30, admit_ahead=0)
    play.seen("w1")
    for request_id in ("r1", "r2", "r3"):
        play.arrive(request_id)
    play.later(8).seen("w1", running=("r1", "r2"))
    play.later(8).seen("w1", running=("r1", "r2"))
    play.gone("w1")
    assert play.wait(29) == []
    assert failure_of(play.wait(1)).request.request_id == "r3"


# Prefetch.


def test_adapters_of_the_first_waiting_requests_are_prefetched_once_each() -> None:
    play = Playbook(admit_ahead=0, max_prefetch=2)
    play.seen("w1")
    play.seen("w2")
    for number in range(4):
        play.later(1).arrive(f"r{number}")
    assert play.later(1).arrive("x", adapter_id="a") == [
        Prefetch(worker_id="w1", adapter_id="a", request_id="x")
    ]
    assert play.later(1).arrive("y", adapter_id="a") == []
    assert play.later(1).arrive("z", adapter_id="b") == [], "beyond the first two"
    assert kinds(play.end("r0", worker="w1")) == ["Done", "Admit", "Prefetch"]


def test_an_adapter_that_fails_to_load_is_not_prefetched_for_the_same_request_again() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1")
    play.arrive("r1")
    play.arrive("r2")
    assert kinds(play.arrive("r3", adapter_id="a")) == ["Prefetch"]
    assert play.moved("a", Residency.ABSENT) == []
