"""The size of a request."""

import pytest

from anole_scheduler.core.size import Measure, OutputSize, WeightedSize, measure_of
from tests.unit.scheduler.playbook import adapter, waiting

WINDOW = [Measure(1000, 100, 8), Measure(500, 200, 128)]


def weighted() -> WeightedSize:
    sizing = WeightedSize(0.4, 0.6, rank_floor=8)
    sizing.refit(WINDOW)
    return sizing


@pytest.mark.parametrize(
    ("measure", "size"),
    [
        (Measure(1000, 200, 128), 1.0),
        (Measure(1000, 200, 64), 0.5),
        (Measure(500, 100, 128), 0.5),
        (Measure(0, 200, 128), 0.6),
        (Measure(1000, 0, 128), 0.4),
        (Measure(9999, 999, 999), 1.0),
    ],
)
def test_tokens_are_weighed_and_the_rank_multiplies_all(measure: Measure, size: float) -> None:
    assert weighted().size(measure) == pytest.approx(size)


def test_a_request_without_adapter_has_a_size_that_grows_with_its_tokens() -> None:
    sizing = weighted()
    assert 0 < sizing.size(Measure(10, 10, 0)) < sizing.size(Measure(1000, 200, 0))
    assert sizing.size(Measure(10, 10, 0)) == sizing.size(Measure(10, 10, 8))


def test_the_scale_stays_until_it_is_fitted_again() -> None:
    sizing = weighted()
    before = sizing.size(Measure(500, 100, 128))
    sizing.refit([*WINDOW, Measure(2000, 400, 128)])
    assert sizing.size(Measure(500, 100, 128)) == pytest.approx(before / 2)


def test_output_alone_knows_neither_prompt_nor_rank() -> None:
    sizing = OutputSize()
    sizing.refit(WINDOW)
    assert sizing.size(Measure(1, 100, 8)) == sizing.size(Measure(999, 100, 128)) == 0.5


def test_a_request_is_measured_by_what_is_predicted_and_recorded() -> None:
    progress = waiting(
        num_prompt_tokens=7,
        max_tokens=90,
        predicted_tokens=30,
        adapter_id="a",
        adapter=adapter("a"),
    )
    assert measure_of(progress) == Measure(7, 30, 8, 100)
    assert measure_of(waiting(num_prompt_tokens=7, max_tokens=9)) == Measure(7, 9, 0, 0)
