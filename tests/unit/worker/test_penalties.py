import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anole_worker.core.step import Row, Sampling
from anole_worker.runtime.penalties import adjust, is_adjusted
from tests.unit.worker.draws import drawing

VOCAB_SIZE = 24
TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30)

samplings = st.builds(
    Sampling,
    temperature=st.just(0.0),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.1, 2.0]),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.3, 2.0]),
    frequency_penalty=st.sampled_from([0.0, -1.0, 0.7]),
    logit_bias=st.dictionaries(
        st.integers(0, VOCAB_SIZE + 5), st.floats(-100, 100, width=32), max_size=4
    ).map(lambda biases: tuple(biases.items())),
)
rows_of_any_kind = st.lists(
    st.builds(
        lambda sampling, prompt, output, banned: drawing(
            sampling, prompt=[1, *prompt], output=output, banned=banned
        ),
        samplings,
        TOKENS,
        TOKENS,
        st.lists(st.integers(0, VOCAB_SIZE + 5), max_size=3),
    ),
    min_size=1,
    max_size=5,
)


def random_logits(num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, VOCAB_SIZE, generator=generator) * 3


def reference(logits: torch.Tensor, row: Row) -> NDArray[np.float64]:
    """Token by token, as the APIs' documentations say it."""
    sampling, history = row.sampling, row.history
    assert sampling is not None
    assert history is not None
    biases = dict(sampling.logit_bias)
    counts = Counter(history.output_token_ids)
    result = logits.double().numpy().copy()
    for token_id in range(VOCAB_SIZE):
        if token_id in history.token_ids:
            if result[token_id] > 0:
                result[token_id] /= sampling.repetition_penalty
            else:
                result[token_id] *= sampling.repetition_penalty
        result[token_id] -= sampling.frequency_penalty * counts[token_id]
        if counts[token_id] > 0:
            result[token_id] -= sampling.presence_penalty
        result[token_id] += biases.get(token_id, 0)
        if token_id in row.banned_token_ids:
            result[token_id] = -np.inf
    return result


@settings(deadline=None)
@given(rows=rows_of_any_kind)
def test_every_row_gets_its_own_penalties_biases_and_bans(rows: list[Row]) -> None:
    logits = random_logits(len(rows))
    adjusted = logits.clone()
    adjust(adjusted, rows)
    for index, row in enumerate(rows):
        np.testing.assert_allclose(
            adjusted[index].numpy(), reference(logits[index], row), rtol=1e-5, atol=1e-5
        )
        if not is_adjusted(row):
            assert torch.equal(adjusted[index], logits[index])


def test_the_prompt_counts_for_the_repetition_penalty_alone() -> None:
    logits = torch.ones(2, VOCAB_SIZE)
    penalties = Sampling(temperature=0, presence_penalty=1, frequency_penalty=1)
    repetition = Sampling(temperature=0, repetition_penalty=2)
    adjust(logits, [drawing(s, prompt=[3, 3], output=[4, 4]) for s in (penalties, repetition)])
    assert logits[0, [3, 4, 5]].tolist() == [1, -2, 1]
    assert logits[1, [3, 4, 5]].tolist() == [0.5, 0.5, 1]


@pytest.mark.parametrize(
    ("changes", "banned", "expected"),
    [
        ({}, (), False),
        ({"top_p": 0.5, "top_k": 3, "min_p": 0.1, "logprobs": 2, "seed": 4}, (), False),
        ({"grammar": 'start: "a"'}, (7,), False),
        ({}, (7,), True),
        ({"repetition_penalty": 1.1}, (), True),
        ({"presence_penalty": -0.1}, (), True),
        ({"frequency_penalty": 0.1}, (), True),
        ({"logit_bias": ((1, 0.0),)}, (), True),
    ],
)
def test_a_row_without_extras_needs_no_copy_of_its_logits(
    changes: dict[str, object], banned: tuple[int, ...], *, expected: bool
) -> None:
    sampling = dataclasses.replace(Sampling(temperature=0.5), **changes)
    assert is_adjusted(drawing(sampling, banned=banned)) is expected


def test_penalties_without_a_history_are_our_own_bug() -> None:
    row = drawing(Sampling(temperature=0, presence_penalty=1))
    with pytest.raises(ValueError, match="no history"):
        adjust(torch.zeros(1, 10), [dataclasses.replace(row, history=None)])
