"""Clusters of numbers."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_scheduler.core.kmeans import clusterings


def best_cost(values: list[float], count: int) -> float:
    """By trying every way to cut the sorted values."""
    ordered = sorted(values)
    costs = []
    for cuts in combinations(range(1, len(ordered)), count - 1):
        parts = [ordered[a:b] for a, b in zip((0, *cuts), (*cuts, len(ordered)), strict=True)]
        costs.append(sum(sum((v - sum(p) / len(p)) ** 2 for v in p) for p in parts))
    return min(costs)


@given(st.lists(st.integers(0, 50).map(lambda n: n / 10), min_size=1, max_size=9))
def test_no_other_way_to_cut_is_better(values: list[float]) -> None:
    found = clusterings(values, 4)
    assert len(found) == min(4, len(set(values)))
    for count, (cost, centroids) in enumerate(found, start=1):
        assert cost == pytest.approx(best_cost(values, count), abs=1e-9)
        assert len(centroids) == count
        assert centroids == sorted(centroids)


def test_groups_far_apart_are_found() -> None:
    _, centroids = clusterings([1.0, 1.2, 0.8, 10.0, 10.2, 99.0], 3)[2]
    assert centroids == pytest.approx([1.0, 10.1, 99.0])


def test_equal_values_are_one_cluster() -> None:
    assert clusterings([0.3] * 5, 4) == [(0.0, [pytest.approx(0.3)])]
