"""Each policy by itself."""

import pytest

from anole_scheduler.core.policies.adapter_affinity import AdapterAffinity
from anole_scheduler.core.policies.fcfs import FirstComeFirstServed
from anole_scheduler.core.policies.fits import Fits
from anole_scheduler.core.policies.least_loaded import LeastLoaded
from anole_scheduler.core.policies.starts_now import StartsNow
from anole_scheduler.core.policies.stays import Stays
from anole_scheduler.core.request import Progress
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, adapter, request


@pytest.fixture
def worker() -> Worker:
    return Worker("w1", model="tiny", capacity=CAPACITY, admit_ahead=0, now=0.0)


def test_first_come_is_first_served() -> None:
    early = Progress(request=request("z"), arrived_s=1.0, redelivered=False)
    late = Progress(request=request("a"), arrived_s=2.0, redelivered=False)
    assert FirstComeFirstServed().key(early) < FirstComeFirstServed().key(late)


def test_a_request_fits_an_idle_worker(worker: Worker) -> None:
    assert Fits().passes(request(), worker)


def test_a_request_does_not_fit_a_full_worker(worker: Worker) -> None:
    worker.admit(request("r1"))
    worker.admit(request("r2"))
    assert not Fits().passes(request("r3"), worker)


def test_a_request_that_is_too_long_never_fits(worker: Worker) -> None:
    assert not Fits().passes(request(num_prompt_tokens=1024), worker)


def test_a_request_does_not_fit_a_worker_without_its_adapter(worker: Worker) -> None:
    worker.folder = {"a": adapter("a")}
    assert Fits().passes(request(adapter_id="a"), worker)
    assert not Fits().passes(request(adapter_id="b"), worker)


def test_a_request_does_not_fit_where_an_older_attempt_still_runs(worker: Worker) -> None:
    worker.report_foreign(["r1"], num_free_blocks=99, now=0.0)
    assert not Fits().passes(request("r1", attempt=1), worker)
    assert Fits().passes(request("r2"), worker)


def test_a_worker_that_starts_at_once_scores_higher(worker: Worker) -> None:
    before = StartsNow().score(request("r3"), worker)
    worker.admit(request("r1"))
    worker.admit(request("r2"))
    assert StartsNow().score(request("r3"), worker) < before


def test_affinity_is_highest_where_the_adapter_is_resident(worker: Worker) -> None:
    scores = []
    for residency in (Residency.ABSENT, Residency.LOADING, Residency.RESIDENT):
        worker.observe("a", residency, 0.0)
        scores.append(AdapterAffinity().score(request(adapter_id="a"), worker))
    assert scores[0] < scores[1] < scores[2]
    assert AdapterAffinity().score(request(adapter_id=None), worker) == 0


def test_a_worker_that_drains_gets_nothing(worker: Worker) -> None:
    assert Stays().passes(request(), worker)
    worker.is_draining = True
    assert not Stays().passes(request(), worker)


def test_load_lowers_the_score(worker: Worker) -> None:
    before = LeastLoaded().score(request("r2"), worker)
    worker.admit(request("r1"))
    assert LeastLoaded().score(request("r2"), worker) < before
