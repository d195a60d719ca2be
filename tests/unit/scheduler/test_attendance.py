"""What workers say, and what follows from their silence."""

from dataclasses import replace

import pytest

from anole_scheduler.core.commands import (
    AbortSequence,
    Fail,
    Failure,
    ForgetAdapter,
    ForgetWorker,
    RecordAdapter,
    RecordWorker,
    RefuseWorker,
)
from anole_scheduler.core.events import WorkerSeen
from anole_scheduler.core.residency import Residency
from tests.unit.scheduler.playbook import CAPACITY, Playbook, adapter, kinds, placed


def test_each_report_is_recorded_and_the_first_one_as_new() -> None:
    play = Playbook()
    play.arrive("r1", adapter_id="b")
    report = WorkerSeen(
        worker_id="w1",
        model="tiny",
        capacity=CAPACITY,
        running=("x",),
        num_free_blocks=90,
        resident=("a",),
    )
    recorded = RecordWorker(
        worker_id="w1",
        model="tiny",
        capacity=CAPACITY,
        num_running=1,
        num_free_blocks=90,
        resident=("a",),
        loading=(),
        is_new=True,
    )
    assert play.hear(report)[0] == recorded
    assert play.hear(report) == [replace(recorded, is_new=False, loading=("b",))]


def test_requests_of_a_worker_that_leaves_fail_as_lost() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    play.later(1).arrive("r2")
    forgotten, *rest = play.gone("w1")
    assert forgotten == ForgetWorker(worker_id="w1", reason="it has stopped")
    assert kinds(rest) == ["Fail", "Done", "Fail", "Done"]
    fails = [command for command in rest if isinstance(command, Fail)]
    assert [fail.request.request_id for fail in fails] == ["r1", "r2"]
    assert {fail.failure for fail in fails} == {Failure.WORKER_LOST}
    assert "w1" in fails[0].message


def test_a_lost_request_that_is_sent_again_goes_to_another_worker() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.arrive("r1")
    play.gone("w1")
    assert placed(play.arrive("r1", attempt=1)) == [("r1", "w2")]


def test_a_cancelled_request_of_a_lost_worker_is_done_and_nobody_is_told() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    play.cancel("r1")
    assert kinds(play.gone("w1")) == ["ForgetWorker", "Done"]


def test_a_silent_worker_is_lost_after_its_timeout() -> None:
    play = Playbook(worker_timeout_s=10)
    play.seen("w1")
    play.arrive("r1")
    assert play.wait(10) == []
    assert kinds(play.wait(1)) == ["ForgetWorker", "Fail", "Done"]


def test_a_worker_that_reports_is_not_lost() -> None:
    play = Playbook(worker_timeout_s=10)
    play.seen("w1")
    for _ in range(5):
        assert play.wait(8) == []
        play.seen("w1")


def test_silence_does_not_count_while_the_scheduler_itself_was_away() -> None:
    play = Playbook(worker_timeout_s=10)
    play.seen("w1")
    play.tick()
    assert play.later(3600).tick() == []
    assert play.wait(10) == []
    assert kinds(play.wait(1)) == ["ForgetWorker"]


def test_news_of_a_worker_that_is_gone_is_ignored() -> None:
    play = Playbook()
    play.seen("w1")
    play.gone("w1")
    assert play.gone("w1") == []
    assert play.moved("a", Residency.RESIDENT) == []


def test_a_worker_that_comes_back_is_told_to_stop_what_was_given_up() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    play.gone("w1")
    assert play.seen("w1", running=("r1",)) == [
        AbortSequence(worker_id="w1", request_id="r1", reason="it was given up")
    ]


def test_an_older_attempt_that_still_runs_somewhere_is_stopped() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.arrive("r1")
    play.gone("w1")
    play.arrive("r1", attempt=1)
    (abort,) = play.seen("w1", running=("r1",))
    assert isinstance(abort, AbortSequence)
    assert abort.worker_id == "w1"
    assert kinds(play.end("r1", worker="w2", attempt=1)) == ["Done"]


def test_a_request_that_its_worker_has_never_got_is_lost() -> None:
    play = Playbook(lost_after_s=10)
    play.seen("w1")
    play.arrive("r1")
    assert play.later(5).seen("w1") == []
    assert play.later(5).seen("w1") == []
    assert kinds(play.later(1).seen("w1")) == ["Fail", "Done"]


def test_what_nobody_has_asked_for_takes_room_until_it_is_stopped() -> None:
    play = Playbook(orphan_timeout_s=30, admit_ahead=0)
    play.seen("w1", running=("x", "y"), num_free_blocks=96)
    assert play.arrive("r1") == []
    play.later(20).seen("w1", running=("x",), num_free_blocks=98)
    assert play.scheduler.num_waiting == 0
    assert play.arrive("r2") == []
    (abort,) = play.later(11).seen("w1", running=("x", "r1"))
    assert isinstance(abort, AbortSequence)
    assert abort.request_id == "x"
    assert placed(play.end("x", worker="w1")) == [("r2", "w1")]


def test_blocks_of_what_nobody_has_asked_for_count() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1", running=("x",), num_free_blocks=50)
    assert play.arrive("r1", num_prompt_tokens=800, max_tokens=16) == []
    assert placed(play.end("x", worker="w1")) == [("r1", "w1")]


def test_a_worker_started_again_with_other_settings_has_lost_its_requests() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    commands = play.seen("w1", capacity=replace(CAPACITY, memory_bytes=50))
    assert kinds(commands) == ["ForgetWorker", "Fail", "Done"]
    assert placed(play.arrive("r2")) == [("r2", "w1")]


def test_a_worker_with_another_base_model_is_refused_once_and_gets_nothing() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1")
    (refused,) = play.seen("w2", model="large")
    assert isinstance(refused, RefuseWorker)
    assert "'large'" in refused.reason
    assert "'tiny'" in refused.reason
    assert play.seen("w2", model="large") == []
    assert play.found(adapter("a"), worker="w2") == []
    commands = [c for number in range(4) for c in play.later(1).arrive(f"r{number}")]
    assert {worker for _, worker in placed(commands)} == {"w1"}


def test_a_refused_worker_may_join_when_the_others_have_left() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2", model="large")
    play.gone("w1")
    play.arrive("r1")
    assert placed(play.seen("w2", model="large")) == [("r1", "w2")]


@pytest.mark.parametrize("nothing", ["max_num_seqs", "memory_bytes", "block_bytes", "block_size"])
def test_a_worker_that_can_hold_nothing_is_refused(nothing: str) -> None:
    play = Playbook()
    assert kinds(play.seen("w1", capacity=replace(CAPACITY, **{nothing: 0}))) == ["RefuseWorker"]


def test_the_first_workers_folder_is_recorded_whole_for_a_store_that_lost_it() -> None:
    play = Playbook(adapters=(adapter("a"),))
    play.seen("w1")
    whole = [RecordAdapter(adapter=adapter("a")), RecordAdapter(adapter=adapter("b"))]
    assert play.found(adapter("a"), adapter("b")) == whole
    assert play.found(adapter("a"), adapter("b")) == whole


def test_of_other_workers_only_new_and_changed_adapters_are_recorded() -> None:
    play = Playbook(adapters=(adapter("a"),))
    play.seen("w1")
    play.seen("w2")
    play.found(adapter("a"), adapter("b"))
    assert play.found(adapter("a"), adapter("b"), worker="w2") == []
    changed = adapter("a", generation="2")
    assert play.found(changed, adapter("b"), worker="w2") == [RecordAdapter(adapter=changed)]


def test_adapters_told_before_the_first_report_are_learnt_with_it() -> None:
    play = Playbook()
    assert play.found(adapter("a"), worker="w1") == []
    assert play.seen("w1") == [RecordAdapter(adapter=adapter("a"))]


def test_a_refusal_does_not_hide_an_adapter_that_another_worker_serves() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2")
    play.found(adapter("a"), worker="w1")
    assert play.found(adapter("a", refused="torn file"), worker="w2") == []
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w1")]


def test_an_adapter_that_no_worker_has_any_more_is_forgotten() -> None:
    play = Playbook(adapters=(adapter("old"),))
    play.seen("w1")
    play.seen("w2")
    assert kinds(play.found(adapter("a"), worker="w1")) == ["RecordAdapter"], "w2 may have old"
    (forgotten,) = play.found(adapter("a"), worker="w2")
    assert isinstance(forgotten, ForgetAdapter)
    assert forgotten.adapter_id == "old"
