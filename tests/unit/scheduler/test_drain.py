"""The advice when to try again."""

from anole_scheduler.core.drain import DrainRate


def rate(*ends_s: float) -> DrainRate:
    drain = DrainRate()
    for end_s in ends_s:
        drain.note_end(end_s)
    return drain


def test_without_experience_the_advice_is_a_few_seconds() -> None:
    assert rate().wait_s(100, now=0.0) == 5.0
    assert rate(0.0).wait_s(100, now=0.0) == 5.0


def test_the_wait_is_the_number_of_requests_over_the_recent_rate() -> None:
    assert rate(0.0, 1.0, 2.0, 3.0).wait_s(20, now=4.0) == 20.0


def test_the_wait_grows_while_nothing_ends() -> None:
    assert rate(0.0, 1.0).wait_s(4, now=10.0) == 20.0


def test_the_wait_is_between_a_second_and_a_minute() -> None:
    assert rate(0.0, 0.0).wait_s(1, now=0.0) == 1.0
    assert rate(0.0, 100.0).wait_s(1000, now=100.0) == 60.0


def test_only_the_last_ends_count() -> None:
    slow_then_fast = [float(1000 * n) for n in range(10)] + [10_000.0 + n for n in range(64)]
    assert rate(*slow_then_fast).wait_s(64, now=10_064.0) == 60.0
    assert rate(*slow_then_fast).wait_s(32, now=10_064.0) == 32.0
