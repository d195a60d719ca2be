"""Shares of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_scheduler.core.quotas import Quotas, minimum, shares


def test_the_minimum_is_that_of_a_queue_that_keeps_the_slo() -> None:
    # mu = tokens / (S x D) must be so that 1 / (mu - lambda) is the SLO.
    tokens = minimum(largest=1000, service_s=2.0, arrivals_per_s=3.0, slo_s=5.0)
    assert tokens == pytest.approx(1000 * 2 * (0.2 + 3))
    assert 1 / (tokens / (1000 * 2.0) - 3.0) == pytest.approx(5.0)


def test_the_rest_is_divided_like_the_minima() -> None:
    assert shares([100, 300], floors=[1, 1], total=1000) == [250, 750]


def test_minima_that_do_not_fit_are_scaled_but_leave_room_for_one_request_each() -> None:
    assert shares([1000, 1000], floors=[100, 100], total=1000) == [500, 500]
    assert shares([100, 9900], floors=[400, 500], total=1000) == [400, 600]


def test_floors_that_do_not_fit_are_scaled_themselves() -> None:
    assert shares([9000, 9000], floors=[1000, 3000], total=1000) == [250, 750]


def test_without_demand_all_are_equal() -> None:
    assert shares([0, 0], floors=[0, 0], total=9) == [4, 4]


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10_000)), min_size=1, max_size=4),
    st.integers(1, 100_000),
)
def test_shares_are_never_negative_and_never_more_than_there_is(
    classes: list[tuple[float, int]], total: int
) -> None:
    found = shares([m for m, _ in classes], [floor for _, floor in classes], total)
    assert min(found) >= 0
    assert total - len(found) - 1 <= sum(found) <= total


def test_a_class_above_its_share_has_nothing_left_and_others_only_what_the_pool_has() -> None:
    quotas = Quotas(100, 2)
    quotas.take(0, 70)
    assert quotas.available(0) == 0
    assert quotas.available(1) == 30
    quotas.take(1, 30)
    assert quotas.unused == 0
    quotas.give_back(0, 70)
    assert quotas.available(0) == 50
    quotas.check_invariants()
