"""Which adapter goes first, by each policy, on examples worked out by hand."""

from typing import get_args

import pytest

from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import EvictionPolicy, Gdsf, Usage, by_name
from anole_worker.settings import WorkerSettings
from tests.unit.worker.engines import adapter

WINDOW_S = 100.0
NOW = 1000.0


def usage(name: str, *, count: float, idle_s: float = 0.0, size: int = 10) -> Usage:
    return Usage(
        adapter=adapter(name, num_bytes=size),
        count=count,
        last_used_s=NOW - idle_s,
        idle_s=idle_s,
    )


def order(policy: EvictionPolicy, *usages: Usage) -> str:
    for each in usages:
        policy.used(each)
    return "".join(each.adapter.adapter_id for each in policy.order(usages))


def chameleon() -> EvictionPolicy:
    return by_name(WINDOW_S)["chameleon"]


THREE = (
    usage("a", count=4, idle_s=40, size=10),
    usage("b", count=1, idle_s=0, size=20),
    usage("c", count=2, idle_s=200, size=40),
)
"""Fractions of the largest: a 1, 0.6, 0.25; b 0.25, 1, 0.5; c 0.5, 0, 1."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lru", "cab"),
        ("fairshare", "cba"),  # sums 1.5, 1.75, 1.85
        ("chameleon", "bac"),  # 0.4375, 0.6225, 0.675
    ],
)
def test_each_policy_has_an_order_of_its_own(name: str, expected: str) -> None:
    assert order(by_name(WINDOW_S)[name], *THREE) == expected


def test_gdsf_orders_by_uses_and_cost_per_byte() -> None:
    policy = Gdsf(WINDOW_S, fixed_cost_bytes=10)
    assert order(policy, *THREE) == "bca"  # 1 * 30/20, 2 * 50/40, 4 * 20/10


def test_every_policy_that_can_be_set_is_there() -> None:
    names = get_args(WorkerSettings.model_fields["eviction"].annotation)
    assert set(names) == set(by_name(WINDOW_S))
    assert all(policy.window_s == WINDOW_S for policy in by_name(WINDOW_S).values())


@pytest.mark.parametrize(("count", "first"), [(0.49, "y"), (0.51, "x")])
def test_chameleon_weighs_size_like_frequency(count: float, first: str) -> None:
    """Half the size less is made up for by half the uses more."""
    x = usage("x", count=1.0, size=50)
    y = usage("y", count=count, size=100)
    assert order(chameleon(), x, y)[0] == first


@pytest.mark.parametrize(("count", "first"), [(0.77, "y"), (0.79, "x")])
def test_chameleon_weighs_recency_two_ninths_of_frequency(count: float, first: str) -> None:
    """The whole window's age is made up for by 0.10 / 0.45 of the uses: by 0.222 of 1."""
    x = usage("x", count=1.0, idle_s=WINDOW_S)
    y = usage("y", count=count, idle_s=0)
    assert order(chameleon(), x, y)[0] == first


def test_chameleon_measures_by_the_largest_of_those_compared() -> None:
    a = usage("a", count=1.0, size=10)
    b = usage("b", count=1.9, size=5)
    assert order(chameleon(), a, b) == "ba"  # 0.787, 0.775
    huge = usage("h", count=0.1, size=1000)
    assert order(chameleon(), a, b, huge) == "abh"  # 0.341, 0.552, 0.574


def test_beyond_the_window_age_makes_no_difference_but_for_ties() -> None:
    x = usage("x", count=1.0, idle_s=2 * WINDOW_S)
    y = usage("y", count=1.0, idle_s=3 * WINDOW_S)
    assert order(chameleon(), x, y) == "yx"
    more = usage("y", count=1.001, idle_s=3 * WINDOW_S)
    assert order(chameleon(), x, more) == "xy"


@pytest.mark.parametrize("name", ["lru", "fairshare", "chameleon", "gdsf"])
def test_the_longer_idle_go_first_where_all_else_is_equal_and_then_the_name_decides(
    name: str,
) -> None:
    policy = by_name(WINDOW_S)[name]
    usages = [
        usage("b", count=1, idle_s=WINDOW_S + 1),
        usage("c", count=1, idle_s=WINDOW_S + 2),
        usage("a", count=1, idle_s=WINDOW_S + 1),
    ]
    assert order(policy, *usages) == "cab"


@pytest.mark.parametrize("name", ["lru", "fairshare", "chameleon", "gdsf"])
def test_what_was_never_used_can_be_compared(name: str) -> None:
    policy = by_name(WINDOW_S)[name]
    never = Usage(
        adapter=adapter("n", num_bytes=0), count=0, last_used_s=-float("inf"), idle_s=float("inf")
    )
    assert policy.order([]) == []
    assert policy.order([never]) == [never]
    assert [u.adapter.adapter_id for u in policy.order([THREE[0], never])] == ["n", "a"]


def gdsf_with_one_gone(gone: str) -> Gdsf:
    """a and b have been used once, o three times: worth 2, 2 and 6. One of them has gone."""
    policy = Gdsf(WINDOW_S, fixed_cost_bytes=10)
    for each in (usage("a", count=1), usage("b", count=1), usage("o", count=3)):
        policy.used(each)
    policy.gone(adapter(gone, num_bytes=10))
    return policy


def test_with_gdsf_what_was_popular_once_ages_as_the_floor_rises() -> None:
    policy = gdsf_with_one_gone("a")
    new, popular = usage("n", count=2), usage("o", count=3)
    policy.used(new)  # floor 2 + 4
    assert [u.adapter.adapter_id for u in policy.order([popular, new])] == ["n", "o"]
    policy.gone(adapter("n", num_bytes=10))
    newer = usage("p", count=1)
    policy.used(newer)  # floor 6 + 2
    assert [u.adapter.adapter_id for u in policy.order([newer, popular])] == ["o", "p"]


def test_gdsf_does_not_raise_its_floor_for_what_is_merely_forgotten() -> None:
    policy = gdsf_with_one_gone("a")
    policy.forget(adapter("o", num_bytes=10))
    new, b = usage("n", count=1), usage("b", count=1)
    policy.used(new)  # 4, not 6 + 2
    three = usage("t", count=1.5)
    policy.used(three)
    assert [u.adapter.adapter_id for u in policy.order([three, new, b])] == ["b", "n", "t"]
    assert policy._values[new.adapter] == 4


def test_gdsf_values_what_comes_back_by_its_uses_so_far() -> None:
    policy = gdsf_with_one_gone("o")
    back: Adapter = adapter("o", num_bytes=10)
    again = Usage(adapter=back, count=0.5, last_used_s=NOW, idle_s=0)
    assert [u.adapter.adapter_id for u in policy.order([again, usage("b", count=1)])] == ["b", "o"]
