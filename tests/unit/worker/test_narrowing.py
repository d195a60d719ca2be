from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anole_worker.core.step import Sampling
from anole_worker.runtime import narrowing
from anole_worker.runtime.narrowing import narrow

limits = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 7, 50, 300, 5000, 100_000]),
        st.sampled_from([1.0, 0.9999, 0.95, 0.5, 0.01, 0.0]),
    ),
    min_size=1,
    max_size=5,
)
"""top_k and top_p of each row."""


def kept(probabilities: list[float], **fields: Any) -> set[int]:
    weights = torch.tensor([probabilities]) / max(probabilities)
    before = weights.clone()
    narrow(weights, [Sampling(temperature=1, **fields)])
    is_kept = weights[0] > 0
    assert torch.equal(weights[0, is_kept], before[0, is_kept])
    return set(is_kept.nonzero().flatten().tolist())


def test_top_p_counts_what_min_p_and_top_k_left() -> None:
    probabilities = [0.4, 0.3, 0.2, 0.1]
    assert kept(probabilities) == {0, 1, 2, 3}
    assert kept(probabilities, top_p=0.6) == {0, 1}
    assert kept(probabilities, top_p=0.6, top_k=2) == {0, 1}
    assert kept(probabilities, top_p=0.55, top_k=2) == {0}
    assert kept(probabilities, top_p=0.55, min_p=0.7) == {0}
    assert kept(probabilities, top_p=0.0) == {0}
    assert kept(probabilities, min_p=0.45, top_k=4) == {0, 1, 2}
    assert kept(probabilities, min_p=1.0) == {0}


def test_equals_of_the_last_token_kept_are_kept_too() -> None:
    probabilities = [0.1, 0.5, 0.1, 0.1, 0.05]
    assert kept(probabilities, top_k=2) == {0, 1, 2, 3}
    assert kept(probabilities, top_p=0.65) == {0, 1, 2, 3}


def test_each_row_is_narrowed_by_its_own_sampling() -> None:
    weights = torch.tensor([[1.0, 0.5, 0.25, 0.125]]).repeat(5, 1)
    fields: list[dict[str, Any]] = [{}, {"top_k": 1}, {"min_p": 0.2}, {"top_p": 0.7}, {"top_k": 9}]
    narrow(weights, [Sampling(temperature=1, **each) for each in fields])
    assert (weights > 0).sum(dim=-1).tolist() == [4, 1, 3, 2, 4]


@pytest.mark.parametrize("vocab_size", [5, 200, 3000, 9000])
@settings(deadline=None)
@given(chosen=limits, seed=st.integers(0, 1000))
def test_guessing_how_many_are_likely_changes_nothing(
    vocab_size: int, chosen: list[tuple[int, float]], seed: int
) -> None:
    """An accelerator, which is not to be waited for, sorts all of them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, rng.uniform(0, 8), (len(chosen), vocab_size)).astype(np.float32)
    logits[rng.random(logits.shape) < rng.choice([0, 0.1, 0.9, 0.999])] = -50
    weights = torch.from_numpy(np.exp(logits - logits.max(axis=-1, keepdims=True)))
    weights[weights < 1e-20] = 0
    top_k = torch.tensor([k or vocab_size for k, _ in chosen], dtype=torch.float64)
    top_p = torch.tensor([p for _, p in chosen], dtype=torch.float64)
    everything = weights.sort(descending=True).values
    expected, _ = narrowing._least_of(everything, weights, top_k, top_p)
    assert torch.equal(narrowing._least(weights, top_k, top_p), expected)
