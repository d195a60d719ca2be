"""Workers that are known, and strangers."""

from anole_scheduler.core.cluster import Cluster
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, adapter


def worker(name: str, model: str = "tiny") -> Worker:
    return Worker(name, model=model, capacity=CAPACITY, admit_ahead=0, now=0.0)


def test_workers_are_kept_in_order_of_id() -> None:
    cluster = Cluster()
    for name in ("w3", "w1", "w2"):
        cluster.join(worker(name))
        cluster.check_invariants()
    assert [known.worker_id for known in cluster.workers] == ["w1", "w2", "w3"]


def test_any_model_may_come_first_and_the_others_must_serve_the_same() -> None:
    cluster = Cluster()
    assert cluster.objection("large", CAPACITY) is None
    cluster.join(worker("w1", model="large"))
    assert cluster.objection("large", CAPACITY) is None
    assert "'tiny'" in str(cluster.objection("tiny", CAPACITY))


def test_a_stranger_that_falls_silent_is_forgotten() -> None:
    cluster = Cluster()
    assert cluster.refuse("w1", now=0.0)
    cluster.keep_folder("w2", [adapter("a")], now=0.0)
    cluster.silent(now=10.0, timeout_s=10)
    assert not cluster.refuse("w1", now=10.0)
    cluster.silent(now=21.0, timeout_s=10)
    assert cluster.refuse("w1", now=21.0)
    assert cluster.join(worker("w2")) is None


def test_the_time_since_the_last_worker_left_is_known() -> None:
    cluster = Cluster()
    first, second = worker("w1"), worker("w2")
    cluster.join(first)
    cluster.join(second)
    cluster.leave(first, now=5.0)
    cluster.leave(second, now=7.0)
    assert cluster.workers == ()
    assert cluster.empty_since_s == 7.0
