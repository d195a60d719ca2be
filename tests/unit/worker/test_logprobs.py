import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anole_worker.core.step import Score, TokenLogprobs
from anole_worker.runtime.logprobs import measure, read, score

VOCAB_SIZE = 60


def reference(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    exact = logits.astype(np.float64)
    logprobs = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    likeliest = sorted(range(len(exact)), key=lambda other: (-exact[other], other))[:num_top]
    return TokenLogprobs(
        logprob=float(logprobs[token_id]),
        top=tuple((other, float(logprobs[other])) for other in likeliest),
    )


def assert_close(told: TokenLogprobs, expected: TokenLogprobs) -> None:
    assert told.logprob == pytest.approx(expected.logprob, abs=1e-5)
    assert [token_id for token_id, _ in told.top] == [token_id for token_id, _ in expected.top]
    assert [value for _, value in told.top] == pytest.approx(
        [value for _, value in expected.top], abs=1e-5
    )


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_values=st.sampled_from([1, 2, 5, 1000]), data=st.data())
def test_the_likeliest_are_told_in_order_and_equals_by_their_ids(
    seed: int, num_values: int, data: st.DataObject
) -> None:
    """Few values make many equals, more than are looked at beyond those asked for."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 5, num_values).astype(np.float32)
    logits = values[rng.integers(0, num_values, (3, VOCAB_SIZE))]
    token_ids = rng.integers(0, VOCAB_SIZE, 3)
    num_top = data.draw(st.lists(st.integers(0, 20), min_size=3, max_size=3))
    tensor = torch.from_numpy(logits)
    measured = measure(tensor, torch.from_numpy(token_ids), max(num_top))
    for index, told in enumerate(read(measured, tensor, num_top)):
        assert_close(told, reference(logits[index], int(token_ids[index]), num_top[index]))


def test_a_vocabulary_smaller_than_what_is_asked_for_is_told_whole() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0]])
    (told,) = read(measure(logits, torch.tensor([0]), 20), logits, [20])
    assert_close(told, reference(logits[0].numpy(), 0, 20))
    assert [token_id for token_id, _ in told.top] == [1, 2, 0]


@pytest.mark.parametrize("num_extra", [0, 1])
@pytest.mark.parametrize("num_top", [0, 3])
def test_each_token_of_a_prompt_is_scored_by_the_logits_before_it(
    num_extra: int, num_top: int
) -> None:
    """Those of the prompt's last token, where there are any, tell nothing of the prompt."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (100 + num_extra, VOCAB_SIZE)).astype(np.float32)
    token_ids = tuple(rng.integers(0, VOCAB_SIZE, 100).tolist())
    scored = score(torch.from_numpy(logits), Score(token_ids=token_ids, num_top=num_top))
    assert len(scored) == 100
    for index, told in enumerate(scored):
        assert_close(told, reference(logits[index], token_ids[index], num_top))


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    assert score(torch.zeros(1, 5), Score(token_ids=(), num_top=3)) == ()
