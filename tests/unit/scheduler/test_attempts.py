"""Attempts at a request: cancelled, repeated, replaced, taken over. Events in, commands out."""

from collections.abc import Callable

import pytest

from anole_scheduler.core.commands import (
    AbortSequence,
    Admit,
    Adopt,
    Command,
    Done,
)
from anole_scheduler.core.events import GatewayGone
from anole_scheduler.core.request import RequestState
from anole_shared.ids import GatewayId, RequestId
from tests.unit.scheduler.playbook import Playbook, kinds, placed, request


def done(request_id: str = "r1", attempt: int = 0) -> Done:
    return Done(request_id=RequestId(request_id), attempt=attempt)


# Cancelling.


def test_a_waiting_request_that_is_cancelled_is_done_at_once() -> None:
    play = Playbook()
    play.arrive("r1")
    assert play.cancel("r1") == [done("r1")]
    assert play.seen("w1") == []


def test_a_running_request_that_is_cancelled_is_done_when_its_worker_says_so() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    assert play.cancel("r1") == [AbortSequence(worker_id="w1", request_id="r1", reason="gone")]
    assert play.cancel("r1") == []
    assert play.end("r1") == [done("r1")]
    assert play.cancel("r1") == []


def test_a_cancelled_request_holds_its_room_until_it_has_ended() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1")
    for request_id in ("r1", "r2", "r3"):
        play.arrive(request_id)
    assert placed(play.cancel("r1")) == []
    assert placed(play.end("r1")) == [("r3", "w1")]


def test_nothing_of_a_gateway_that_is_gone_waits_or_runs_for_long() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1")
    for request_id, gateway in (("r1", "g1"), ("r2", "g2"), ("r3", "g1"), ("r4", "g2")):
        play.arrive(request_id, gateway_id=GatewayId(gateway))
    reason = "its gateway is gone"
    assert play.hear(GatewayGone(gateway_id=GatewayId("g1"))) == [
        AbortSequence(worker_id="w1", request_id="r1", reason=reason),
        done("r3"),
    ]
    assert placed(play.end("r1")) == [("r4", "w1")]


# Second deliveries and later attempts.


def test_a_second_delivery_changes_nothing_while_the_request_waits_or_runs() -> None:
    play = Playbook()
    play.arrive("r1")
    assert play.arrive("r1", redelivered=True) == []
    assert placed(play.seen("w1")) == [("r1", "w1")]
    assert play.arrive("r1", redelivered=True) == []


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_second_delivery_of_an_ended_request_is_acknowledged_and_not_run(attempt: int) -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1", attempt=1)
    play.end("r1", attempt=1)
    assert play.arrive("r1", attempt=attempt, redelivered=True) == [done("r1", attempt)]


def test_a_later_attempt_at_an_ended_request_is_run() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    play.end("r1")
    assert placed(play.arrive("r1", attempt=1)) == [("r1", "w1")]


def test_a_later_attempt_replaces_one_that_waits() -> None:
    play = Playbook()
    play.arrive("r1")
    assert play.arrive("r1", attempt=1) == [done("r1", 0)]
    (admit,) = play.seen("w1")
    assert isinstance(admit, Admit)
    assert admit.request.attempt == 1


def test_a_later_attempt_replaces_one_that_runs_and_goes_elsewhere() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.arrive("r1")
    commands = play.arrive("r1", attempt=1)
    assert kinds(commands) == ["AbortSequence", "Done", "Admit"]
    assert placed(commands) == [("r1", "w2")]


def test_a_later_attempt_waits_until_the_only_worker_has_let_go_of_the_older_one() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    assert kinds(play.arrive("r1", attempt=1)) == ["AbortSequence", "Done"]
    assert placed(play.end("r1", attempt=0)) == [("r1", "w1")]


def test_the_end_of_an_older_attempt_does_not_end_the_later_one() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.arrive("r1")
    play.arrive("r1", attempt=1)
    assert play.end("r1", worker="w1", attempt=0) == []
    assert play.end("r1", worker="w2", attempt=1) == [done("r1", 1)]


def test_an_older_attempt_that_comes_late_is_acknowledged_and_not_run() -> None:
    play = Playbook()
    play.arrive("r1", attempt=2)
    assert play.arrive("r1", attempt=1, redelivered=True) == [done("r1", 1)]


# Taking over from another scheduler.


def test_after_a_take_over_nothing_is_admitted_until_workers_have_spoken() -> None:
    play = Playbook(settle_s=5)
    play.arrive("r1", redelivered=True)
    assert play.later(1).seen("w1") == []
    assert play.later(1).seen("w2", running=("r1",)) == [
        Adopt(worker_id="w2", request=request("r1"))
    ]
    assert play.later(3).tick() == []
    assert play.end("r1", worker="w2") == [done("r1")]


def test_after_a_take_over_what_nobody_runs_is_admitted_in_its_old_order() -> None:
    play = Playbook(settle_s=5)
    for request_id in ("r1", "r2"):
        play.later(0.1).arrive(request_id, redelivered=True)
    play.later(0.1).arrive("r3")
    assert play.seen("w1", running=("r1",)) == [Adopt(worker_id="w1", request=request("r1"))]
    assert placed(play.later(5).tick()) == [("r2", "w1"), ("r3", "w1")]


def test_a_redelivered_request_that_a_worker_has_reported_before_is_not_admitted_twice() -> None:
    play = Playbook()
    play.seen("w1", running=("r1",))
    assert play.arrive("r1", redelivered=True) == [Adopt(worker_id="w1", request=request("r1"))]


def test_a_start_without_requests_from_before_does_not_wait() -> None:
    play = Playbook()
    play.seen("w1")
    assert placed(play.arrive("r1")) == [("r1", "w1")]


def test_a_redelivery_long_after_the_start_holds_nobody_up() -> None:
    play = Playbook(settle_s=5)
    play.seen("w1")
    assert placed(play.later(6).arrive("r1", redelivered=True)) == [("r1", "w1")]


def test_a_standby_counts_the_take_over_from_the_first_message_not_from_its_start() -> None:
    play = Playbook(settle_s=5)
    play.wait(60)
    play.arrive("r1", redelivered=True)
    assert play.later(1).seen("w1") == []


def test_a_request_that_ended_while_no_scheduler_was_there_is_done() -> None:
    play = Playbook()
    play.arrive("r1", redelivered=True)
    assert play.end("r1", worker="w1") == [done("r1")]


def test_a_request_whose_end_was_delivered_before_it_is_done() -> None:
    play = Playbook()
    play.end("r1", worker="w1")
    assert play.arrive("r1", redelivered=True) == [done("r1")]


def prepared(state: RequestState) -> Playbook:
    """A scheduler whose request r1, attempt 1, is in the state, of a worker that is full."""
    play = Playbook(admit_ahead=0, lost_after_s=4)
    if state is RequestState.FAILED:
        play.seen("w1")
        play.arrive("r1", attempt=1, num_prompt_tokens=5000)
        return play
    if state is not RequestState.WAITING:
        play.seen("w1")
    play.arrive("r1", attempt=1)
    if state is RequestState.SQUASHING:
        progress = play.scheduler._ledger.requests[RequestId("r1")]
        play.scheduler._dispatcher.squash(progress, "another needs its room")
    if state in {RequestState.ABORTING, RequestState.ABORTED}:
        play.cancel("r1")
    if state in {RequestState.FINISHED, RequestState.ABORTED}:
        play.end("r1", attempt=1)
    return play


EVENTS: dict[str, Callable[[Playbook], list[Command]]] = {
    "same attempt": lambda play: play.arrive("r1", attempt=1, redelivered=True),
    "older attempt": lambda play: play.arrive("r1", attempt=0, redelivered=True),
    "later attempt": lambda play: play.arrive("r1", attempt=2),
    "cancelled": lambda play: play.cancel("r1"),
    "ended": lambda play: play.end("r1", attempt=1),
    "stopped": lambda play: play.end("r1", attempt=1, was_finished=False),
    "older ended": lambda play: play.end("r1", attempt=0),
    "ended elsewhere": lambda play: play.end("r1", worker="w9", attempt=1),
    "given back": lambda play: play.give_back("r1", attempt=1),
    "older given back": lambda play: play.give_back("r1", attempt=0),
    "given back elsewhere": lambda play: play.give_back("r1", worker="w9", attempt=1),
    "reported": lambda play: play.later(5).seen("w1", running=("r1",)),
    "not reported": lambda play: play.later(5).seen("w1"),
    "worker gone": lambda play: play.gone("w1"),
    "tick": lambda play: play.tick(),
}

REACTIONS: dict[str, dict[str, list[str]]] = {
    "WAITING": {
        "older attempt": ["Done"],
        "later attempt": ["Done"],
        "cancelled": ["Done"],
        "ended": ["Done"],
        "stopped": ["Done"],
        "ended elsewhere": ["Done"],
        "reported": ["AbortSequence"],
        "not reported": ["Admit"],
    },
    "RUNNING": {
        "older attempt": ["Done"],
        "later attempt": ["AbortSequence", "Done"],
        "cancelled": ["AbortSequence"],
        "ended": ["Done"],
        "stopped": ["Done"],
        "not reported": ["Fail", "Done"],
        "worker gone": ["ForgetWorker", "Fail", "Done"],
    },
    "ABORTING": {
        "given back": ["Done"],
        "older attempt": ["Done"],
        "later attempt": ["Done"],
        "ended": ["Done"],
        "stopped": ["Done"],
        "not reported": ["Done"],
        "worker gone": ["ForgetWorker", "Done"],
    },
    "SQUASHING": {
        "older attempt": ["Done"],
        "later attempt": ["Done"],
        "ended": ["Done"],
        "stopped": ["Fail", "Done"],
        "not reported": ["Fail", "Done"],
        "worker gone": ["ForgetWorker", "Fail", "Done"],
    },
} | {
    state: {
        "same attempt": ["Done"],
        "older attempt": ["Done"],
        "later attempt": ["Admit"],
        "reported": ["AbortSequence"],
        "worker gone": ["ForgetWorker"],
    }
    for state in ("FINISHED", "ABORTED", "FAILED")
}
"""What is not listed leads to no command."""


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", RequestState)
def test_every_event_in_every_state(state: RequestState, event: str) -> None:
    play = prepared(state)
    assert kinds(EVENTS[event](play)) == REACTIONS[state.name].get(event, [])


def test_the_table_has_a_row_for_every_state() -> None:
    assert REACTIONS.keys() == {state.name for state in RequestState}
