"""The mirror of a worker's admission."""

from dataclasses import replace

import pytest

from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, adapter, request, waiting


def worker(*, admit_ahead: int = 2, **capacity: int) -> Worker:
    return Worker(
        "w1",
        model="tiny",
        capacity=replace(CAPACITY, **capacity),
        admit_ahead=admit_ahead,
        now=0.0,
    )


@pytest.mark.parametrize(
    ("capacity", "longest"),
    [
        (replace(CAPACITY, max_model_len=1024, memory_bytes=1000, block_size=16), 1024),
        (replace(CAPACITY, max_model_len=9999, memory_bytes=1000, block_size=16), 1600),
    ],
)
def test_the_longest_request_is_bound_by_the_model_and_by_the_pool(
    capacity: Capacity, longest: int
) -> None:
    assert capacity.longest() == longest


def test_requests_start_while_seats_are_free_and_wait_ahead_after_that() -> None:
    mirror = worker(max_num_seqs=2)
    for name in ("r1", "r2", "r3"):
        mirror.admit(waiting(name))
    assert list(mirror.started) == ["r1", "r2"]
    assert list(mirror.ahead) == ["r3"]
    mirror.release("r1")
    assert list(mirror.started) == ["r2", "r3"]
    mirror.check_invariants()


def test_a_request_that_fits_does_not_pass_one_that_waits_ahead() -> None:
    mirror = worker(max_num_seqs=8, memory_bytes=100, block_size=16)
    mirror.admit(waiting("r1", num_prompt_tokens=80, max_tokens=16))  # 6 blocks
    mirror.admit(waiting("r2", num_prompt_tokens=80, max_tokens=16))
    assert not mirror.can_start(waiting("r3"))
    mirror.admit(waiting("r3"))
    assert list(mirror.ahead) == ["r2", "r3"]
    mirror.check_invariants()


def test_blocks_are_rounded_up() -> None:
    mirror = worker(memory_bytes=40, block_size=16)
    mirror.admit(waiting("r1", num_prompt_tokens=16, max_tokens=1))
    assert mirror.load == 0.5


def test_there_is_room_for_admit_ahead_requests_that_cannot_start() -> None:
    mirror = worker(max_num_seqs=1, admit_ahead=2)
    for name in ("r1", "r2", "r3"):
        assert mirror.has_room(waiting(name))
        mirror.admit(waiting(name))
    assert not mirror.has_room(waiting("r4"))


def test_without_work_ahead_only_what_starts_at_once_has_room() -> None:
    mirror = worker(max_num_seqs=1, admit_ahead=0)
    assert mirror.has_room(waiting("r1"))
    mirror.admit(waiting("r1"))
    assert not mirror.has_room(waiting("r2"))


def test_releasing_one_that_waits_ahead_frees_its_place() -> None:
    mirror = worker(max_num_seqs=1)
    mirror.admit(waiting("r1"))
    mirror.admit(waiting("r2"))
    mirror.release("r2")
    assert mirror.admitted() == ["r1"]
    mirror.check_invariants()


def test_a_worker_that_has_not_told_its_folder_may_have_any_adapter() -> None:
    mirror = worker(memory_bytes=110)
    assert mirror.longest("a", None) > 0
    mirror.folder = {
        "a": adapter("a", size_bytes=100),
        "b": adapter("b", size_bytes=101),
        "c": adapter("c", refused="torn"),
    }
    assert [mirror.longest(name, None) > 0 for name in ("a", "b", "c", "d", None)] == [
        True,
        False,
        False,
        False,
        True,
    ]


def test_foreign_requests_take_seats_and_the_blocks_that_nothing_else_explains() -> None:
    mirror = worker(max_num_seqs=2, memory_bytes=1000)
    mirror.admit(waiting("r1", num_prompt_tokens=160, max_tokens=160))  # 20 blocks
    mirror.report_foreign(["x"], num_free_blocks=50, now=1.0)
    assert mirror.unexplained_blocks == 30
    assert mirror.load == 0.5
    assert not mirror.can_start(waiting("r2"))
    mirror.forget_foreign("x")
    assert mirror.unexplained_blocks == 0
    assert mirror.can_start(waiting("r2"))


def test_the_end_of_a_foreign_request_lets_the_next_start() -> None:
    mirror = worker(max_num_seqs=1)
    mirror.report_foreign(["x"], num_free_blocks=99, now=1.0)
    mirror.admit(waiting("r1"))
    assert not mirror.started
    mirror.report_foreign([], num_free_blocks=100, now=2.0)
    assert list(mirror.started) == ["r1"]


def test_a_foreign_request_is_known_since_its_first_report() -> None:
    mirror = worker()
    mirror.report_foreign(["x"], num_free_blocks=99, now=1.0)
    mirror.report_foreign(["x", "y"], num_free_blocks=98, now=5.0)
    assert mirror.foreign == {"x": 1.0, "y": 5.0}


def test_a_disowned_request_keeps_its_room_as_a_foreign_one() -> None:
    mirror = worker()
    mirror.admit(waiting("r1"))
    load = mirror.load
    mirror.disown(request("r1"), now=1.0)
    assert not mirror.has("r1")
    assert mirror.foreign == {"r1": 1.0}
    assert mirror.load == load
    mirror.check_invariants()


def test_a_report_replaces_what_was_believed_resident_and_leaves_what_loads() -> None:
    mirror = worker()
    mirror.observe("old", Residency.RESIDENT, 0.0)
    mirror.expect("loading", 0.0)
    mirror.report_resident(["new"], now=5.0, load_timeout_s=60)
    assert mirror.adapters(Residency.RESIDENT) == ("new",)
    assert mirror.adapters(Residency.LOADING) == ("loading",)


def test_what_has_been_loading_for_too_long_is_given_up() -> None:
    mirror = worker()
    mirror.expect("a", 0.0)
    mirror.report_resident([], now=60.0, load_timeout_s=60)
    assert mirror.residency("a") is Residency.LOADING
    mirror.report_resident([], now=61.0, load_timeout_s=60)
    assert mirror.residency("a") is Residency.ABSENT


def test_expecting_an_adapter_that_is_there_changes_nothing() -> None:
    mirror = worker()
    mirror.observe("a", Residency.RESIDENT, 0.0)
    mirror.expect("a", 1.0)
    assert mirror.residency("a") is Residency.RESIDENT


def test_foreign_requests_that_wait_at_the_worker_take_places_ahead() -> None:
    mirror = worker(max_num_seqs=1, admit_ahead=1)
    mirror.report_foreign(["x"], num_free_blocks=99, now=0.0)
    assert mirror.has_room(waiting("r1"))
    mirror.report_foreign(["x", "y"], num_free_blocks=99, now=0.0)
    assert not mirror.has_room(waiting("r1"))
