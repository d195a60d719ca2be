"""Why a request can never run."""

from dataclasses import replace

from anole_scheduler.core.commands import Failure
from anole_scheduler.core.refusal import refusal_of
from anole_scheduler.core.registry import Registry
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, adapter, request


def worker(*adapters: str, **capacity: int) -> Worker:
    known = Worker(
        "w1", model="tiny", capacity=replace(CAPACITY, **capacity), admit_ahead=0, now=0.0
    )
    known.folder = {adapter_id: adapter(adapter_id, size_bytes=500) for adapter_id in adapters}
    return known


def test_without_workers_nothing_is_impossible() -> None:
    assert refusal_of(request(max_tokens=10**9), [], Registry([])) is None


def test_one_worker_that_can_run_it_is_enough() -> None:
    workers = [worker(max_model_len=10), worker(max_model_len=100)]
    assert refusal_of(request(num_prompt_tokens=50), workers, Registry([])) is None


def test_a_worker_without_the_adapter_is_of_no_use_however_long_its_model() -> None:
    workers = [worker(max_model_len=9999), worker("a", max_model_len=100)]
    refusal = refusal_of(request(num_prompt_tokens=200, adapter_id="a"), workers, Registry([]))
    assert refusal is not None
    assert refusal.failure is Failure.TOO_LONG
    assert "more than 100" in refusal.message


def test_the_adapter_must_leave_room_for_tokens() -> None:
    workers = [worker("a", memory_bytes=509), worker("b")]
    refusal = refusal_of(request(adapter_id="a"), workers, Registry([]))
    assert refusal is not None
    assert refusal.failure is Failure.ADAPTER_TOO_LARGE
    assert "509" in refusal.message


def test_a_request_is_too_long_for_what_its_adapter_leaves() -> None:
    workers = [worker("a", memory_bytes=520), worker("a", memory_bytes=499)]
    refusal = refusal_of(request(adapter_id="a", max_tokens=17), workers, Registry([]))
    assert refusal is not None
    assert refusal.failure is Failure.TOO_LONG
    assert "more than 32" in refusal.message


def test_a_recorded_adapter_that_nobody_has_now_may_come_back() -> None:
    refusal = refusal_of(request(adapter_id="a"), [worker("b")], Registry([adapter("a")]))
    assert refusal is not None
    assert refusal.failure is Failure.NO_WORKER
    assert refusal.retry_after_s
