"""Each policy by itself."""

import pytest

from anole_scheduler.core.policies.adapter_affinity import AdapterAffinity
from anole_scheduler.core.policies.fcfs import FirstComeFirstServed
from anole_scheduler.core.policies.fits import Fits
from anole_scheduler.core.policies.least_loaded import LeastLoaded
from anole_scheduler.core.policies.sjf import ShortestFirst
from anole_scheduler.core.policies.starts_now import StartsNow
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, adapter, waiting


@pytest.fixture
def worker() -> Worker:
    return Worker("w1", model="tiny", capacity=CAPACITY, admit_ahead=0, now=0.0)


def test_first_come_is_first_served() -> None:
    early, late = waiting("z", arrived_s=1.0), waiting("a", arrived_s=2.0)
    order = FirstComeFirstServed()
    assert order.key(early, 9.0) < order.key(late, 9.0)


def test_a_request_that_comes_again_keeps_its_place() -> None:
    again, late = waiting("z", arrived_s=5.0, first_arrived_s=1.0), waiting("a", arrived_s=2.0)
    order = FirstComeFirstServed()
    assert order.key(again, 9.0) < order.key(late, 9.0)


def test_the_shortest_is_first_until_another_has_waited_long_enough() -> None:
    order = ShortestFirst(tokens_per_s=10)
    long = order.key(waiting(arrived_s=0.0, predicted_tokens=100), 0.0)
    assert order.key(waiting(arrived_s=8.0, predicted_tokens=10), 8.0) < long
    assert order.key(waiting(arrived_s=10.0, predicted_tokens=10), 10.0) > long


def test_a_request_fits_an_idle_worker(worker: Worker) -> None:
    assert Fits().passes(waiting(), worker)


def test_a_request_does_not_fit_a_full_worker(worker: Worker) -> None:
    worker.admit(waiting("r1"))
    worker.admit(waiting("r2"))
    assert not Fits().passes(waiting("r3"), worker)


def test_a_request_that_is_too_long_never_fits(worker: Worker) -> None:
    assert not Fits().passes(waiting(num_prompt_tokens=1024), worker)


def test_a_request_does_not_fit_a_worker_without_its_adapter(worker: Worker) -> None:
    worker.folder = {"a": adapter("a")}
    assert Fits().passes(waiting(adapter_id="a"), worker)
    assert not Fits().passes(waiting(adapter_id="b"), worker)


def test_a_request_does_not_fit_where_an_older_attempt_still_runs(worker: Worker) -> None:
    worker.report_foreign(["r1"], num_free_blocks=99, now=0.0)
    assert not Fits().passes(waiting("r1", attempt=1), worker)
    assert Fits().passes(waiting("r2"), worker)


def test_a_worker_that_starts_at_once_scores_higher(worker: Worker) -> None:
    before = StartsNow().score(waiting("r3"), worker)
    worker.admit(waiting("r1"))
    worker.admit(waiting("r2"))
    assert StartsNow().score(waiting("r3"), worker) < before


def test_affinity_is_highest_where_the_adapter_is_resident(worker: Worker) -> None:
    scores = []
    for residency in (Residency.ABSENT, Residency.LOADING, Residency.RESIDENT):
        worker.observe("a", residency, 0.0)
        scores.append(AdapterAffinity().score(waiting(adapter_id="a"), worker))
    assert scores[0] < scores[1] < scores[2]
    assert AdapterAffinity().score(waiting(adapter_id=None), worker) == 0


def test_load_lowers_the_score(worker: Worker) -> None:
    before = LeastLoaded().score(waiting("r2"), worker)
    worker.admit(waiting("r1"))
    assert LeastLoaded().score(waiting("r2"), worker) < before
