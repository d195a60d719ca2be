"""How long an answer will be."""

from hypothesis import given, settings
from hypothesis import strategies as st

from anole_scheduler.core.predictor import (
    Accuracy,
    MaxTokensPredictor,
    OnlinePredictor,
    Predictor,
    _Histogram,
)
from anole_scheduler.core.request import Request

ENOUGH = 8


def a_request(
    *, adapter: str | None = "json", prompt: int = 100, max_tokens: int = 1024, attempt: int = 0
) -> Request:
    return Request(
        request_id="r",
        attempt=attempt,
        gateway_id="g",
        adapter_id=adapter,
        num_prompt_tokens=prompt,
        max_tokens=max_tokens,
    )


def teach(predictor: Predictor, request: Request, *lengths: int) -> None:
    for num_tokens in lengths:
        predictor.learn(request, num_tokens, now=0.0)


def is_about(predicted: int, true: int) -> bool:
    return abs(predicted - true) <= 0.1 * true + 1


def test_who_knows_nothing_expects_max_tokens() -> None:
    for predictor in (MaxTokensPredictor(), OnlinePredictor()):
        teach(predictor, a_request(), *[5] * (ENOUGH - 1))
        assert predictor.predict(a_request(max_tokens=77)) == 77


def test_the_median_of_an_adapters_answers_is_expected() -> None:
    predictor = OnlinePredictor()
    teach(predictor, a_request(), *[200] * 6, *[3000] * 5)
    assert is_about(predictor.predict(a_request()), 200)


def test_each_adapter_has_answers_of_its_own_and_a_new_one_those_of_all() -> None:
    predictor = OnlinePredictor()
    teach(predictor, a_request(adapter="json"), *[20] * 10)
    teach(predictor, a_request(adapter=None), *[400] * 30)
    assert is_about(predictor.predict(a_request(adapter="json")), 20)
    assert is_about(predictor.predict(a_request(adapter=None)), 400)
    assert is_about(predictor.predict(a_request(adapter="new")), 400)


def test_prompt_length_and_max_tokens_tell_requests_of_an_adapter_apart() -> None:
    predictor = OnlinePredictor()
    teach(predictor, a_request(prompt=374), *[44] * 10)
    teach(predictor, a_request(prompt=420), *[300] * 10)
    teach(predictor, a_request(prompt=374, max_tokens=100), *[90] * 10)
    assert is_about(predictor.predict(a_request(prompt=374)), 44)
    assert is_about(predictor.predict(a_request(prompt=420)), 300)
    assert is_about(predictor.predict(a_request(prompt=374, max_tokens=100)), 90)


def test_few_answers_to_such_prompts_are_backed_by_the_adapters_others() -> None:
    predictor = OnlinePredictor()
    teach(predictor, a_request(prompt=50), *[40] * 20)
    teach(predictor, a_request(prompt=5000), *[900] * (ENOUGH - 1))
    assert is_about(predictor.predict(a_request(prompt=5000)), 40)
    teach(predictor, a_request(prompt=5000), 900)
    assert is_about(predictor.predict(a_request(prompt=5000)), 900)


def test_what_has_changed_is_learnt_anew() -> None:
    predictor = OnlinePredictor()
    teach(predictor, a_request(), *[30] * 10_000)
    teach(predictor, a_request(), *[600] * 300)
    assert is_about(predictor.predict(a_request()), 600)


def test_the_rest_of_an_answer_teaches_nothing() -> None:
    predictor = OnlinePredictor()
    teach(predictor, a_request(attempt=1), *[5] * 50)
    assert predictor.predict(a_request()) == 1024
    assert predictor.accuracy.num_learnt == 0


def test_what_was_not_learnt_from_for_longest_is_forgotten_first() -> None:
    predictor = OnlinePredictor(max_keys=100)
    teach(predictor, a_request(adapter="first"), *[7] * 20)
    for number in range(1000):
        teach(predictor, a_request(adapter=f"a{number}"), 300)
        if number < 900:
            teach(predictor, a_request(adapter="kept"), 20)
    assert len(predictor) == 100
    assert is_about(predictor.predict(a_request(adapter="first")), 300)


def test_accuracy_counts_classes_and_near_guesses_of_the_past_alone() -> None:
    accuracy = Accuracy()
    for predicted, true in [(100, 30), (600, 700), (500, 504), (10, 10)]:
        accuracy.note(predicted, true)
    assert accuracy.num_learnt == 4
    assert accuracy.in_class == 0.75
    assert accuracy.within_factor_2 == 0.75
    predictor = OnlinePredictor()
    teach(predictor, a_request(), *[10] * (ENOUGH + 8))
    assert predictor.accuracy.within_factor_2 == 0.5  # max_tokens while it knew nothing


@settings(deadline=None)
@given(st.lists(st.integers(0, 67), min_size=1, max_size=1500))
def test_the_median_is_that_of_the_counts_however_they_came(buckets: list[int]) -> None:
    histogram = _Histogram()
    for bucket in buckets:
        histogram.add(bucket)
        below = sum(histogram._counts[: histogram.median])
        assert 2 * below < histogram.total <= 2 * (below + histogram._counts[histogram.median])
        assert histogram.total == sum(histogram._counts) < 255


def test_the_median_is_that_of_the_counts_also_when_these_are_halved() -> None:
    histogram = _Histogram()
    many_small_and_one_large = [*range(26)] * 5 + [40] * 125
    for bucket in many_small_and_one_large:
        histogram.add(bucket)
        below = sum(histogram._counts[: histogram.median])
        assert histogram._below == below
        assert 2 * below < histogram.total <= 2 * (below + histogram._counts[histogram.median])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, "a", "b"]),
            st.integers(0, 10**6),
            st.integers(1, 10**6),
            st.integers(0, 10**6),
        ),
        max_size=100,
    )
)
def test_a_guess_is_between_1_and_max_tokens(ends: list[tuple[str | None, int, int, int]]) -> None:
    predictor = OnlinePredictor(max_keys=20)
    for adapter, prompt, max_tokens, output in ends:
        request = a_request(adapter=adapter, prompt=prompt, max_tokens=max_tokens)
        assert 1 <= predictor.predict(request) <= max_tokens
        predictor.learn(request, output, now=0.0)
        assert len(predictor) <= 20
