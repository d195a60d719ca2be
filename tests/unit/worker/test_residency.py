"""The ledger of adapters: residency, pins, uses, and who goes first."""

import math

import pytest

from anole_worker.core import residency
from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import Gdsf, Lru, Usage
from anole_worker.core.residency import TRANSITIONS, AdapterCache, Residency
from tests.unit.worker.engines import adapter

WINDOW_S = 60.0
A, B, C = adapter("a"), adapter("b"), adapter("c")


class Remembering(Lru):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(WINDOW_S)
        self.told: list[tuple[str, str]] = []

    def gone(self, adapter: Adapter) -> None:
        self.told.append(("gone", adapter.adapter_id))

    def forget(self, adapter: Adapter) -> None:
        self.told.append(("forget", adapter.adapter_id))


def load(cache: AdapterCache, *adapters: Adapter) -> None:
    for each in adapters:
        cache.start_load(each)
        cache.loaded(each)


def order(cache: AdapterCache, now: float) -> list[str]:
    cache.check_invariants()
    return [usage.adapter.adapter_id for usage in cache.in_order(now)]


def test_only_idle_resident_adapters_can_go() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A, B)
    cache.start_load(C)
    cache.pin(A)
    assert order(cache, 1) == ["b"]
    assert cache.idle_bytes(()) == B.num_bytes
    assert cache.idle_bytes([B, B, C]) == 0
    assert cache.used_bytes == A.num_bytes + B.num_bytes + C.num_bytes
    assert cache.adapters(Residency.LOADING) == (C,)
    assert cache.num_loading == 1


def test_an_adapter_is_pinned_until_all_who_run_with_it_have_ended() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A)
    cache.pin(A)
    cache.pin(A)
    cache.unpin(A, 1)
    assert order(cache, 1) == []
    cache.unpin(A, 2)
    assert order(cache, 2) == ["a"]


def test_the_end_of_a_sequence_is_a_use_and_its_start_is_another() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A, B)
    cache.used(A, 1)
    cache.used(B, 2)
    assert order(cache, 3) == ["a", "b"]
    cache.pin(A)
    cache.unpin(A, 4)
    assert order(cache, 5) == ["b", "a"]
    assert cache.usage(A, 4).count == pytest.approx(math.exp(-3 / WINDOW_S))


def test_uses_fade_over_the_window_and_outlive_the_weights() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A)
    cache.used(A, 0)
    cache.drop(A)
    cache.used(A, WINDOW_S)
    assert cache.usage(A, WINDOW_S).count == pytest.approx(1 + math.exp(-1))
    assert cache.usage(A, 2 * WINDOW_S) == Usage(
        adapter=A,
        count=pytest.approx(math.exp(-1) + math.exp(-2)),
        last_used_s=WINDOW_S,
        idle_s=WINDOW_S,
    )


def test_what_was_never_asked_for_goes_before_what_was() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A, B)
    cache.used(A, -1e9)
    assert order(cache, 0) == ["b", "a"]


def test_a_replaced_adapter_goes_first_as_if_it_had_never_been_used() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    old, new = adapter("a"), adapter("a", generation="2")
    load(cache, B, old, new)
    for now, each in enumerate((B, new, old)):
        cache.used(each, now)
    assert order(cache, 3) == ["b", "a", "a"]
    cache.retire(old)
    first = next(cache.in_order(3))
    assert (first.adapter, first.count, first.last_used_s) == (old, 0, -math.inf)
    assert order(cache, 3) == ["a", "b", "a"]


def test_whoever_runs_with_a_replaced_adapter_keeps_it() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A, B)
    cache.pin(A)
    cache.retire(A)
    assert order(cache, 1) == ["b"]
    cache.unpin(A, 2)
    assert order(cache, 2) == ["a", "b"]


def test_replacing_what_is_not_here_leaves_no_trace() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    cache.retire(A)
    load(cache, B, A)
    cache.used(B, 1)
    cache.used(A, 2)
    assert order(cache, 3) == ["b", "a"]


def test_two_contents_of_an_adapter_share_neither_bytes_nor_pins_nor_uses() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    new = adapter("a", generation="2")
    load(cache, A, new)
    cache.used(A, 1)
    cache.pin(A)
    assert not cache.is_pinned(new)
    assert cache.usage(new, 1).count == 0
    assert cache.used_bytes == 2 * A.num_bytes


def test_the_policy_hears_why_an_adapter_has_gone() -> None:
    policy = Remembering()
    cache = AdapterCache(policy)
    load(cache, A, B)
    cache.start_load(C)
    cache.drop(A)
    cache.retire(B)
    cache.drop(B)
    cache.load_failed(C)
    assert policy.told == [("gone", "a"), ("forget", "b"), ("forget", "c")]
    assert cache.used_bytes == 0
    cache.check_invariants()


def test_a_load_that_fails_does_not_make_others_worth_less() -> None:
    cache = AdapterCache(Gdsf(WINDOW_S, fixed_cost_bytes=10))
    load(cache, A)
    cache.used(A, 0)
    for _ in range(9):
        cache.used(B, 0)
    cache.start_load(B)
    cache.load_failed(B)
    load(cache, C)
    cache.used(C, 1)
    assert order(cache, 1) == ["c", "a"]


def test_what_was_dropped_and_is_here_after_all_can_go_again() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A)
    cache.drop(A)
    cache.take_back(A)
    assert order(cache, 1) == ["a"]
    assert cache.num_loading == 0


def many(number: int) -> tuple[AdapterCache, list[Adapter]]:
    """A cache of so many, each used a moment after the one before it, from -number s to 0 s."""
    cache = AdapterCache(Lru(WINDOW_S))
    adapters = [adapter(f"x{index:05}") for index in range(number)]
    load(cache, *adapters)
    for index, each in enumerate(adapters):
        cache.used(each, float(index - number))
    return cache, adapters


def test_with_many_adapters_the_order_holds_for_a_while_but_never_names_what_was_used() -> None:
    cache, adapters = many(1000)
    assert order(cache, 0.0) == [each.adapter_id for each in adapters]
    cache.used(adapters[0], 0.1)
    cache.pin(adapters[1])
    cache.drop(adapters[2])
    fresh = adapter("fresh")
    load(cache, fresh)
    expected = [each.adapter_id for each in adapters[3:]]
    assert order(cache, 0.2)[:-2] == expected
    assert order(cache, 0.2 + 0.5 + 0.01) == ["fresh", *expected, adapters[0].adapter_id]


def test_an_order_that_has_become_incomplete_is_made_anew_where_all_of_it_is_needed() -> None:
    cache, adapters = many(1000)
    next(cache.in_order(0.0))
    load(cache, A)
    for each in adapters:
        cache.drop(each)
    assert order(cache, 0.1) == ["a"]


def test_a_replaced_adapter_goes_first_at_once_also_among_many() -> None:
    cache, adapters = many(1000)
    assert order(cache, 0.0)[0] == adapters[0].adapter_id
    cache.retire(adapters[500])
    assert order(cache, 0.0)[0] == adapters[500].adapter_id


def test_uses_of_too_many_adapters_are_forgotten_the_most_faded_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residency, "_MAX_USES_KEPT", 4)
    policy = Remembering()
    cache = AdapterCache(policy)
    load(cache, A)
    cache.used(A, 0)
    cache.used(B, 1)
    cache.used(C, 500)
    cache.used(adapter("d"), 501)
    cache.used(adapter("e"), 502)  # b has faded; a, too, but it is here
    assert policy.told == [("forget", "b")]
    cache.used(adapter("f"), 503)  # nobody has faded: half of the absent ones go
    assert policy.told[1:] == [("forget", "c"), ("forget", "d")]
    assert cache.usage(A, 503).count > 0


def test_no_transition_leads_past_loading() -> None:
    assert Residency.RESIDENT not in TRANSITIONS[Residency.ABSENT]
    assert set(TRANSITIONS) == set(Residency)


def test_our_own_mistakes_are_caught() -> None:
    cache = AdapterCache(Lru(WINDOW_S))
    load(cache, A)
    cache.start_load(B)
    with pytest.raises(AssertionError, match="RESIDENT -> "):
        cache.loaded(A)
    with pytest.raises(AssertionError, match="here already"):
        cache.start_load(A)
    with pytest.raises(AssertionError, match="not here"):
        cache.pin(B)
    with pytest.raises(AssertionError, match="not pinned"):
        cache.unpin(A, 0)
    cache.pin(A)
    with pytest.raises(AssertionError, match="is pinned"):
        cache.drop(A)
