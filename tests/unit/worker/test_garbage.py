"""What Python's search for garbage leaves out."""

import gc
import weakref

from anole_worker.garbage import loaded_set_aside, uncollected


class Knot:
    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_is_left_out_while_a_worker_serves() -> None:
    with loaded_set_aside():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


def test_garbage_of_later_is_found_as_before() -> None:
    with loaded_set_aside():
        knot = weakref.ref(Knot())
        gc.collect()
        assert knot() is None


def test_nothing_is_collected_meanwhile_and_what_was_there_is_before() -> None:
    knot = weakref.ref(Knot())
    with uncollected():
        assert knot() is None
        assert not gc.isenabled()
    assert gc.isenabled()
