"""Size classes."""

import pytest

from anole_scheduler.core.classes import Chooser, SizeClasses, elbow, min_wcss
from anole_scheduler.core.size import Measure, OutputSize


def classes(choose: Chooser = min_wcss, *, min_sample: int = 4) -> SizeClasses:
    return SizeClasses(OutputSize(), choose, max_classes=4, refresh_s=300, min_sample=min_sample)


def outputs(*tokens: int) -> list[Measure]:
    return [Measure(10, count, 0) for count in tokens]


def see(known: SizeClasses, *tokens: int, now: float = 0.0) -> None:
    for measure in outputs(*tokens):
        known.observe(measure, now)


def test_there_is_one_class_until_the_first_sample_is_full() -> None:
    known = classes(min_sample=4)
    see(known, 1, 100, 200)
    assert not known.is_due(1000.0)
    assert known.count == 1
    see(known, 300)
    assert known.is_due(0.0)
    assert known.refresh(0.0)
    assert known.count == 4


def test_cut_offs_lie_half_way_and_belong_to_the_class_above() -> None:
    known = classes()
    see(known, *[100] * 5, *[300] * 5)
    known.refresh(0.0)
    assert [known.class_of(measure) for measure in outputs(1, 199, 200, 300, 900)] == [
        0,
        0,
        1,
        1,
        1,
    ]


def test_the_smallest_sum_of_squares_always_takes_all_classes_and_the_elbow_what_helps() -> None:
    sample = [*range(100, 110), *range(500, 510), *range(1000, 1010)]
    counts = {}
    for choose in (min_wcss, elbow):
        known = classes(choose)
        see(known, *sample)
        known.refresh(0.0)
        counts[choose] = known.count
    assert counts == {min_wcss: 4, elbow: 3}


@pytest.mark.parametrize("choose", [min_wcss, elbow])
def test_equal_sizes_are_one_class(choose: Chooser) -> None:
    known = classes(choose)
    see(known, *[50] * 10)
    known.refresh(0.0)
    assert known.count == 1


def test_only_what_came_since_the_last_refresh_counts() -> None:
    known = classes()
    see(known, *[100] * 5, *[300] * 5, now=0.0)
    known.refresh(0.0)
    see(known, *[10] * 5, *[20] * 5, now=299.0)
    assert not known.is_due(299.0)
    assert known.is_due(300.0)
    assert known.refresh(301.0)
    assert [known.class_of(measure) for measure in outputs(14, 16)] == [0, 1]


def test_with_too_little_that_is_new_the_classes_stay() -> None:
    known = classes(min_sample=4)
    see(known, 100, 100, 300, 300)
    known.refresh(0.0)
    see(known, 7, now=300.0)
    assert not known.refresh(301.0)
    assert known.count == 2
    assert not known.is_due(302.0)


def test_a_thousand_sizes_are_clustered_by_an_even_sample() -> None:
    known = classes()
    see(known, *range(1, 3001))
    known.refresh(0.0)
    sizes = [known.class_of(measure) for measure in outputs(300, 1100, 1900, 2700)]
    assert sizes == [0, 1, 2, 3]
