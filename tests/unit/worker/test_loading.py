"""Which adapters are loaded next: for those who wait here, by hints, by guesses."""

import pytest

from anole_worker.core import loading
from anole_worker.core.adapter import Adapter
from anole_worker.core.loading import Loading
from anole_worker.core.memory import Memory
from anole_worker.core.prefetch import ArrivalHistogram
from anole_worker.core.residency import Residency
from anole_worker.core.sequence import Sequence
from anole_worker.core.waiting import Waiting
from tests.unit.worker.engines import adapter, make_memory, make_sequence

A, B, C, D = (adapter(name, num_bytes=10) for name in "abcd")


def plans(
    budget_bytes: int = 30, max_loads: int = 9, predictor: ArrivalHistogram | None = None
) -> tuple[Loading, Memory]:
    memory = make_memory(budget_bytes=budget_bytes)
    return Loading(memory, max_loads=max_loads, predictor=predictor), memory


def resident(memory: Memory, *adapters: Adapter) -> None:
    """The first of them is the longest unused."""
    for now, each in enumerate(adapters):
        assert memory.claim_unused(each)
        memory.adapters.loaded(each)
        memory.adapters.used(each, float(now))


def line(*adapters: Adapter | None) -> tuple[Waiting, list[Sequence]]:
    waiting = Waiting()
    sequences = []
    for order, each in enumerate(adapters):
        sequence = make_sequence(f"r{order}")
        sequence.adapter, sequence.order = each, order
        waiting.add(sequence)
        sequences.append(sequence)
    return waiting, sequences


def planned(
    plan: Loading,
    *adapters: Adapter | None,
    now: float = 10.0,
    headroom_bytes: int = 0,
    short: int | None = None,
) -> list[tuple[str, str, str | None]]:
    """(adapter, those that go for it, for whom) of each load."""
    waiting, sequences = line(*adapters)
    behind = None if short is None else sequences[short]
    return [
        (load.adapter.adapter_id, "".join(e.adapter_id for e in load.evict), load.request_id)
        for load in plan.plan(waiting, headroom_bytes, now, behind)
    ]


def test_the_adapters_of_waiting_sequences_are_loaded_in_their_order_each_once() -> None:
    plan, memory = plans()
    resident(memory, C)
    assert planned(plan, None, B, C, A, B) == [("b", "", "r1"), ("a", "", "r3")]
    assert planned(plan, B, A) == []


def test_no_more_loads_are_under_way_than_may_be() -> None:
    plan, memory = plans(max_loads=2)
    assert planned(plan, A, B, C) == [("a", "", "r0"), ("b", "", "r1")]
    assert planned(plan, A, B, C) == []
    memory.adapters.loaded(A)
    assert planned(plan, A, B, C) == [("c", "", "r2")]


def test_the_adapter_that_is_needed_last_goes_for_an_earlier_sequence() -> None:
    """By the policy a would go for c, and b for a."""
    plan, memory = plans(budget_bytes=20)
    resident(memory, A, B)
    assert planned(plan, C, A, B, A) == [("c", "b", "r0")]


def test_the_adapter_of_an_earlier_sequence_never_goes_for_a_later_one() -> None:
    plan, memory = plans(budget_bytes=20)
    resident(memory, A, B)
    assert planned(plan, A, C, B) == [("c", "b", "r1")]
    assert planned(plan, A, D) == []


def test_where_there_is_no_room_for_one_no_later_one_takes_room() -> None:
    plan, memory = plans(budget_bytes=30)
    resident(memory, A)
    memory.adapters.pin(A)
    small = adapter("s", num_bytes=1)
    plan.hint(small, 9.0)
    large = adapter("l", num_bytes=21)
    assert planned(plan, large, small) == []
    assert plan.no_room_for == large
    assert planned(plan, small) == [("s", "", "r0")]
    assert plan.no_room_for is None


def test_whoever_is_short_of_blocks_loses_no_memory_to_later_loads() -> None:
    plan, _ = plans()
    plan.hint(C, 9.0)
    assert planned(plan, A, None, B, short=1) == [("a", "", "r0")]
    assert planned(plan, A, None, B) == [("b", "", "r2"), ("c", "", None)]


def test_running_sequences_are_left_their_headroom_by_every_kind_of_load() -> None:
    predictor = ArrivalHistogram(9)
    plan, _ = plans(budget_bytes=14, predictor=predictor)
    for now in range(10):
        predictor.arrived(C, now)
    plan.hint(B, 9.9)
    assert planned(plan, A, headroom_bytes=5, now=9.9) == []
    assert planned(plan, headroom_bytes=5, now=10.0) == []
    assert planned(plan, headroom_bytes=4, now=10.3) == [("c", "", None)]


def test_a_hint_takes_the_room_of_what_nobody_waits_for_and_of_nothing_else() -> None:
    plan, memory = plans(budget_bytes=30)
    resident(memory, A, B, C)
    plan.hint(A, 9.0)
    plan.hint(D, 9.0)
    assert planned(plan, B) == [("d", "c", None)]
    plan.hint(C, 9.0)
    assert planned(plan, B) == []


def test_a_hint_is_kept_for_a_while_like_the_adapter_of_a_waiting_sequence() -> None:
    plan, memory = plans(budget_bytes=20)
    resident(memory, A, B)
    plan.hint(A, 10.0)
    assert plan.wanted((), 40.0).goes_last(A)
    assert planned(plan, C, now=40.0) == [("c", "b", "r0")]
    assert not plan.wanted((), 40.1).goes_last(A)


def test_hints_that_are_too_old_are_not_followed() -> None:
    plan, _ = plans()
    plan.hint(A, 0.0)
    plan.hint(B, 5.0)
    assert planned(plan, now=31.0) == [("b", "", None)]


def test_hints_wait_for_a_free_load_but_not_for_room() -> None:
    plan, memory = plans(budget_bytes=30, max_loads=1)
    for each in (A, B, adapter("l", num_bytes=31), C):
        plan.hint(each, 9.0)
    for name in ("a", "b", "c"):
        assert planned(plan) == [(name, "", None)]
        memory.adapters.loaded(adapter(name, num_bytes=10))
    assert planned(plan) == []


def test_a_hint_ends_when_its_request_has_come() -> None:
    plan, _ = plans()
    plan.hint(A, 9.0)
    plan.arrived(A, 9.5)
    assert not plan.wanted((), 10.0).goes_last(A)
    assert planned(plan) == []


def test_so_many_hints_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_MAX_HINTS", 2)
    plan, memory = plans()
    for each in (A, B, C, B):
        plan.hint(each, 9.0)
    wanted = plan.wanted((), 10.0)
    assert [wanted.goes_last(each) for each in (A, B, C)] == [False, True, True]
    assert {name for name, _, _ in planned(plan)} == {"b", "c"}
    assert memory.adapters.residency(A) is Residency.ABSENT


def guessing(**sizes: int) -> tuple[Loading, Memory, ArrivalHistogram]:
    """All these adapters are asked for every tenth of a second, up to 2 s."""
    predictor = ArrivalHistogram(9)
    plan, memory = plans(budget_bytes=30, predictor=predictor)
    for now in range(20):
        for name, size in sizes.items():
            predictor.arrived(adapter(name, num_bytes=size), now / 10)
    return plan, memory, predictor


def test_a_guess_takes_only_unused_memory() -> None:
    plan, memory, _ = guessing(x=21, y=20, z=10)
    resident(memory, A)
    assert planned(plan, now=2.0) == [("z", "", None)]
    memory.adapters.loaded(adapter("z", num_bytes=10))
    assert memory.adapters.residency(A) is Residency.RESIDENT
    assert planned(plan, now=2.2) == []


def test_guesses_are_made_now_and_then_and_only_of_what_is_absent() -> None:
    plan, memory, _ = guessing(x=10)
    assert planned(plan, now=1.9) == [("x", "", None)]
    x = adapter("x", num_bytes=10)
    memory.adapters.loaded(x)
    memory.adapters.drop(x)
    assert planned(plan, now=2.0) == []
    assert planned(plan, now=2.16) == [("x", "", None)]
    memory.adapters.loaded(x)
    assert planned(plan, now=2.5) == []


def test_requests_feed_the_predictor_with_and_without_one() -> None:
    plan, memory, predictor = guessing()
    plan.arrived(A, 3.0)
    assert predictor.known == (A,)
    assert memory.adapters.usage(A, 3.0).count == 1
    plain, memory = plans()
    plain.arrived(A, 3.0)
    assert memory.adapters.usage(A, 3.0).count == 1
