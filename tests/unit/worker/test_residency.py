"""The ledger of adapter memory."""

import pytest

from anole_shared.ids import AdapterId
from anole_worker.core.residency import TRANSITIONS, AdapterCache, Residency

A, B, C = AdapterId("a"), AdapterId("b"), AdapterId("c")


def resident(cache: AdapterCache, adapter_id: AdapterId, size: int, now: float) -> None:
    assert cache.start_load(adapter_id, size, now) == ()
    cache.loaded(adapter_id)


def test_the_least_recently_used_idle_adapter_goes_first() -> None:
    cache = AdapterCache(budget_bytes=20)
    resident(cache, A, 10, now=1)
    resident(cache, B, 10, now=2)
    cache.pin(A, now=3)
    cache.unpin(A, now=4)
    assert cache.start_load(C, 10, now=5) == (B,)
    assert cache.residency(B) is Residency.ABSENT
    assert cache.residency(C) is Residency.LOADING
    cache.check_invariants()


def test_a_pinned_adapter_never_goes_and_nothing_changes_then() -> None:
    cache = AdapterCache(budget_bytes=20)
    resident(cache, A, 10, now=1)
    resident(cache, B, 10, now=2)
    cache.pin(A, now=3)
    cache.pin(B, now=3)
    assert cache.start_load(C, 1, now=4) is None
    assert cache.resident() == (A, B)
    cache.unpin(B, now=5)
    assert cache.start_load(C, 1, now=6) == (B,)


def test_an_adapter_that_is_loading_is_no_victim() -> None:
    cache = AdapterCache(budget_bytes=10)
    assert cache.start_load(A, 10, now=1) == ()
    assert cache.start_load(B, 1, now=2) is None


def test_as_many_small_ones_go_as_a_large_one_needs() -> None:
    cache = AdapterCache(budget_bytes=30)
    for now, name in enumerate("abc"):
        resident(cache, AdapterId(name), 10, now=now)
    assert cache.start_load(AdapterId("large"), 25, now=9) == (A, B, C)
    assert cache.used_bytes == 25


def test_a_failed_load_gives_its_room_back() -> None:
    cache = AdapterCache(budget_bytes=10)
    cache.start_load(A, 10, now=1)
    cache.load_failed(A)
    assert cache.used_bytes == 0
    assert cache.start_load(B, 10, now=2) == ()


def test_no_transition_leads_past_loading() -> None:
    assert Residency.RESIDENT not in TRANSITIONS[Residency.ABSENT]
    assert set(TRANSITIONS) == set(Residency)


def test_a_second_arrival_of_the_same_weights_is_caught() -> None:
    cache = AdapterCache(budget_bytes=10)
    resident(cache, A, 10, now=1)
    with pytest.raises(AssertionError):
        cache.loaded(A)
