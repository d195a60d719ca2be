"""The line of waiting sequences."""

import pytest

from anole_worker.core.sequence import Sequence
from anole_worker.core.waiting import Waiting
from tests.unit.worker.engines import adapter, make_sequence

A, NEW = adapter("a"), adapter("a", generation="2")


def line(*names: tuple[str, str | None]) -> tuple[Waiting, list[Sequence]]:
    waiting = Waiting()
    sequences = [make_sequence(name, adapter_name=adapter_name) for name, adapter_name in names]
    for order, sequence in enumerate(sequences):
        sequence.order = order
        waiting.add(sequence)
    waiting.check_invariants()
    return waiting, sequences


def names(waiting: Waiting) -> list[str]:
    waiting.check_invariants()
    return [sequence.request_id for sequence in waiting]


def test_an_adapter_is_needed_until_the_last_that_needs_it_waits_no_more() -> None:
    waiting, (first, second, _) = line(("r", "a"), ("s", "a"), ("t", None))
    needed = waiting.adapters
    assert set(needed) == {A}
    waiting.remove(first)
    assert set(needed) == {A}
    waiting.remove(second)
    assert set(needed) == set()
    assert names(waiting) == ["t"]


def test_adapters_are_told_in_the_order_in_which_they_are_needed() -> None:
    waiting, (first, *_) = line(("r", "b"), ("s", "a"), ("t", None), ("u", "b"))
    assert list(waiting.adapters) == [adapter("b"), A]
    waiting.remove(first)
    assert list(waiting.adapters) == [A, adapter("b")]
    waiting.put_back(first)
    assert list(waiting.adapters) == [adapter("b"), A]
    assert len(waiting.adapters) == 2


def test_who_waits_again_has_the_place_that_it_had() -> None:
    waiting, (_, second, _) = line(("r", None), ("s", "a"), ("t", None))
    waiting.remove(second)
    waiting.put_back(second)
    assert names(waiting) == ["r", "s", "t"]
    assert set(waiting.adapters) == {A}


def test_a_replaced_adapter_is_needed_no_more_by_those_that_turn_to_the_new_one() -> None:
    waiting, (first, _, third) = line(("r", "a"), ("s", "b"), ("t", "a"))
    first.digest(0, 2)
    before = first.digests[0]
    assert waiting.turn_to(NEW, A) == [first, third]
    assert set(waiting.adapters) == {NEW, adapter("b")}
    assert first.adapter == NEW
    first.digest(0, 2)
    assert first.digests[0] != before
    assert names(waiting) == ["r", "s", "t"]


def test_one_that_does_not_wait_is_not_found() -> None:
    waiting, (first,) = line(("r", None))
    assert "r" in waiting
    assert waiting.get("r") is first
    assert waiting.get("s") is None
    waiting.remove(first)
    assert "r" not in waiting
    assert len(waiting) == 0
    with pytest.raises(KeyError):
        waiting.remove(first)
