"""A worker that is about to leave."""

from anole_scheduler.core.commands import RecordWorker
from anole_scheduler.core.events import WorkerSeen
from anole_scheduler.core.residency import Residency
from tests.unit.scheduler.playbook import CAPACITY, Playbook, adapter, kinds, placed


def test_a_worker_that_drains_gets_nothing_more_and_ends_what_it_has() -> None:
    play = Playbook()
    play.seen("w1")
    assert placed(play.arrive("r1")) == [("r1", "w1")]
    play.seen("w1", running=("r1",), is_draining=True)
    assert play.arrive("r2") == []
    assert placed(play.seen("w2")) == [("r2", "w2")]
    assert kinds(play.end("r1")) == ["Done"]


def test_what_is_given_back_waits_at_its_old_place_and_goes_elsewhere() -> None:
    play = Playbook(admit_ahead=1)
    play.seen("w1")
    for name in ("r1", "r2", "r3"):
        assert placed(play.later(1).arrive(name)) == [(name, "w1")]
    play.later(1).arrive("r4")
    play.seen("w1", running=("r1", "r2", "r3"), is_draining=True)
    assert play.give_back("r3") == []
    assert play.scheduler.num_waiting == 2
    assert placed(play.seen("w2")) == [("r3", "w2"), ("r4", "w2")]


def test_a_worker_that_gives_back_drains_though_its_report_comes_later() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    assert play.give_back("r1") == [], "it would go in circles"


def test_a_request_that_is_given_back_after_it_was_cancelled_is_done() -> None:
    play = Playbook()
    play.seen("w1")
    play.arrive("r1")
    play.cancel("r1")
    assert kinds(play.give_back("r1")) == ["Done"]


def test_who_could_run_a_request_is_asked_only_of_workers_that_stay() -> None:
    play = Playbook()
    play.found(adapter("a"), worker="w1")
    play.found(worker="w2")
    play.seen("w1", is_draining=True)
    assert play.arrive("r1", adapter_id="a") == [], "a successor is likely to have it"
    assert kinds(play.seen("w2")) == ["Fail", "Done"]


def test_an_adapter_is_not_prefetched_where_nobody_will_run_it() -> None:
    play = Playbook(admit_ahead=0)
    play.seen("w1", is_draining=True)
    assert play.arrive("r1", adapter_id="a") == []


def test_a_worker_in_whose_host_the_adapter_is_comes_before_one_that_must_read_it() -> None:
    play = Playbook()
    play.seen("w1")
    play.seen("w2", host=("a",))
    assert placed(play.arrive("r1", adapter_id="a")) == [("r1", "w2")]


def test_host_and_draining_are_recorded() -> None:
    play = Playbook()
    report = WorkerSeen(
        worker_id="w1",
        model="tiny",
        capacity=CAPACITY,
        running=(),
        num_free_blocks=100,
        resident=("a",),
        loading=("b",),
        host=("a", "c"),
        is_draining=True,
    )
    (recorded,) = play.hear(report)
    assert isinstance(recorded, RecordWorker)
    assert recorded.is_draining
    assert (recorded.resident, recorded.loading, recorded.host) == (("a",), ("b",), ("c",))
    play.moved("a", Residency.HOST)
    (recorded,) = play.hear(report)
    assert isinstance(recorded, RecordWorker)
    assert recorded.resident == ("a",), "the newer news"
