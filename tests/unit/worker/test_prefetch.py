"""When the times between requests say that an adapter is needed soon."""

import random
from collections.abc import Iterable

import pytest

from anole_worker.core.prefetch import ArrivalHistogram
from tests.unit.worker.engines import adapter

A, B = adapter("a"), adapter("b")


def after(gaps: Iterable[float]) -> tuple[ArrivalHistogram, float]:
    """A histogram of requests for a with these times between them, and the time of the last."""
    histogram, now = ArrivalHistogram(10), 100.0
    histogram.arrived(A, now)
    for gap in gaps:
        now += gap
        histogram.arrived(A, now)
    return histogram, now


def is_due(histogram: ArrivalHistogram, now: float) -> bool:
    return list(histogram.due([A], now)) == [A]


def due_times(gaps: Iterable[float], up_to_s: int) -> list[int]:
    """The seconds after the last request at which the next is expected."""
    histogram, last_s = after(gaps)
    return [second for second in range(up_to_s) if is_due(histogram, last_s + second)]


def test_a_periodic_adapter_is_due_around_its_period_and_not_before_nor_for_ever() -> None:
    """60 s are in the bin from 50.8 s to 64 s, with a tenth more to either side."""
    assert due_times([60.0] * 10, 600) == list(range(46, 71))


def test_an_adapter_that_is_asked_for_all_the_time_is_due_at_once() -> None:
    assert due_times([0.1] * 10, 20) == [0]


def test_the_pause_behind_a_burst_is_seen_though_most_gaps_are_within_bursts() -> None:
    """300 s are in the bin from 256 s to 322.5 s; gaps of 1 s are over long before."""
    bursts = [1.0, 1.0, 1.0, 1.0, 300.0] * 6
    assert due_times(bursts, 1000) == [1, *range(231, 355)]


def test_too_few_gaps_say_nothing() -> None:
    assert due_times([60.0] * 5, 600) == []
    assert due_times([60.0] * 6, 600) != []


def test_a_rare_gap_says_nothing_either() -> None:
    assert due_times([60.0] * 20 + [900.0] * 3 + [60.0], 2000) == list(range(46, 71))


def test_gaps_of_all_lengths_say_nothing() -> None:
    assert due_times([0.3 * 1.5**n for n in range(24)], 6000) == []


@pytest.mark.parametrize("num_gaps", [8, 12, 128])
def test_requests_at_random_are_rarely_called_due_however_few_are_known(num_gaps: int) -> None:
    """By the mere coefficient of variation 8 random gaps would be due half of the time."""
    generator = random.Random(num_gaps)  # noqa: S311
    due = total = 0
    for _ in range(60):
        histogram, last_s = after(generator.expovariate(1 / 300) for _ in range(num_gaps))
        gap = generator.expovariate(1 / 300)
        due += sum(is_due(histogram, last_s + gap * part / 20) for part in range(20))
        total += 20
    assert due < 0.1 * total


def test_most_requests_with_a_period_that_varies_by_a_tenth_are_expected_a_second_before() -> None:
    generator = random.Random(1)  # noqa: S311
    expected = due = ticks = 0
    for _ in range(60):
        histogram, last_s = after(generator.gauss(60, 6) for _ in range(20))
        gap = generator.gauss(60, 6)
        due += sum(is_due(histogram, last_s + second) for second in range(int(gap)))
        ticks += int(gap)
        expected += is_due(histogram, last_s + gap - 1)
    assert expected > 0.9 * 60
    assert due < 0.4 * ticks


def test_a_request_ends_what_was_expected() -> None:
    histogram, last_s = after([60.0] * 10)
    assert is_due(histogram, last_s + 60)
    histogram.arrived(A, last_s + 60)
    assert not is_due(histogram, last_s + 61)
    assert is_due(histogram, last_s + 120)


def test_old_gaps_are_forgotten() -> None:
    """100 s are in the bin from 80.6 s to 101.6 s."""
    assert due_times([10.0] * 130 + [100.0] * 128, 200) == list(range(73, 112))


def test_gaps_beyond_the_last_bin_are_no_error() -> None:
    histogram, last_s = after([1e6] * 10)
    assert not is_due(histogram, last_s + 1e5)
    assert not is_due(histogram, last_s - 1)


def test_only_what_is_absent_is_told_and_nothing_of_unknown_adapters() -> None:
    histogram, last_s = after([60.0] * 10)
    assert list(histogram.due([], last_s + 60)) == []
    assert list(histogram.due([B, adapter("a", generation="2")], last_s + 60)) == []


def test_the_adapters_that_were_not_asked_for_for_longest_are_forgotten() -> None:
    histogram = ArrivalHistogram(2)
    for now, name in enumerate("abac"):
        histogram.arrived(adapter(name), float(now))
    assert [each.adapter_id for each in histogram.known] == ["c", "a"]
