import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anole_worker.core.step import Drawn, Row, Sampling
from anole_worker.runtime import sampler
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.sampler import sample, uniform
from tests.unit.worker.draws import (
    EOS,
    TURN_END,
    VOCAB_SIZE,
    drawing,
    make_tokenizer,
    no_grammars,
    read_tokenizer,
    schema_grammar,
    shape,
)

BORDER = 1e-5
"""Closer than this to the border between two tokens, rounding may decide."""


def row(seed: int = 0, position: int = 1, **fields: Any) -> Row:
    """Draws the token at that position, at temperature 1 unless told otherwise."""
    return drawing(
        Sampling(**{"temperature": 1.0, "seed": seed, **fields}), prompt=[1] * max(position, 1)
    )


def drawn(logits: torch.Tensor, rows: Sequence[Row]) -> list[int]:
    tokens = [result.token_id for result in sample(logits, rows, no_grammars())]
    assert None not in tokens
    return [token_id for token_id in tokens if token_id is not None]


def random_logits(num_rows: int, vocab_size: int = 1000) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 3


class RoundingDecides(Exception):
    """The example is no good: tokens are too close to the border of what is kept."""


def reference(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float64]:
    """What each token's probability is to be, in plain steps and without regard to speed."""
    scaled = logits.astype(np.float64) / sampling.temperature
    weights = np.exp(scaled - scaled.max())
    keep_from(weights, sampling.min_p)
    if 0 < sampling.top_k < len(weights):
        keep_from(weights, np.sort(weights)[-sampling.top_k])
    if sampling.top_p < 1:
        reached = 0.0
        for weight in sorted(weights, reverse=True):
            reached += weight / weights.sum()
            if abs(reached - sampling.top_p) < BORDER:
                raise RoundingDecides
            if reached >= sampling.top_p:
                keep_from(weights, weight)
                break
    result: NDArray[np.float64] = weights / weights.sum()
    return result


def keep_from(weights: NDArray[np.float64], least: float) -> None:
    if (np.isclose(weights, least, rtol=BORDER, atol=0) & (weights != least)).any():
        raise RoundingDecides
    weights[weights < least] = 0


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.3, 2.0]),
    top_p=st.sampled_from([1.0, 0.9999, 0.95, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 2, 7, 50, 300, 5000, 100_000]),
    min_p=st.sampled_from([0.0, 1e-4, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


@settings(deadline=None)
@given(
    chosen=st.lists(samplings, min_size=1, max_size=4),
    vocab_size=st.sampled_from([1, 3, 128, 1000, 5001]),
    spread=st.sampled_from([0.0, 0.1, 3.0, 20.0]),
    seed=st.integers(0, 10_000),
)
def test_tokens_are_those_that_plain_inversion_of_the_cdf_gives(
    chosen: list[Sampling], vocab_size: int, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (len(chosen), vocab_size)).astype(np.float32)
    rows = [drawing(sampling, prompt=[1] * (seed % 50 + 1)) for sampling in chosen]
    tokens = drawn(torch.from_numpy(logits), rows)
    for index, (sampling, token_id) in enumerate(zip(chosen, tokens, strict=True)):
        try:
            probabilities = reference(logits[index], sampling)
        except RoundingDecides:
            continue
        assert probabilities[token_id] > 0
        cumulative = np.cumsum(probabilities)
        number = uniform(sampling.seed, seed % 50 + 1)
        assert cumulative[token_id] - probabilities[token_id] - BORDER <= number
        assert number <= cumulative[token_id] + BORDER


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 1.5},
        {"top_p": 0.8},
        {"top_k": 3},
        {"min_p": 0.3},
        {"top_k": 5, "top_p": 0.9},
        {"temperature": 2.0, "min_p": 0.5, "top_p": 0.6},
        {"temperature": 0.8, "top_k": 6, "min_p": 0.1, "top_p": 0.95},
    ],
)
def test_tokens_are_drawn_as_often_as_their_probabilities_say(fields: dict[str, Any]) -> None:
    """Chi-square over fixed seeds; a fair sampler exceeds the limit once in 1000 such sets."""
    num_draws = 4000
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, 1.9])
    rows = [row(seed, 11, **fields) for seed in range(num_draws)]
    expected = reference(logits.numpy(), Sampling(**{"temperature": 1.0, **fields}))
    counts = Counter(drawn(logits.expand(num_draws, -1), rows))
    possible = np.flatnonzero(expected).tolist()
    assert counts.keys() <= set(possible)
    chi_square = sum(
        (counts[token] - num_draws * expected[token]) ** 2 / (num_draws * expected[token])
        for token in possible
    )
    limits = {3: 13.8, 4: 16.3, 5: 18.5, 6: 20.5, 8: 24.3}
    assert chi_square < limits[len(possible)]


def test_no_temperature_takes_the_likeliest_token_whatever_else_is_asked() -> None:
    logits = random_logits(5)
    rows = [row(s, temperature=0.0, top_k=3, top_p=0.2, min_p=0.5) for s in range(5)]
    assert drawn(logits, rows) == logits.argmax(dim=-1).tolist()


def test_seeds_and_positions_give_other_tokens() -> None:
    logits = torch.zeros(1, 1000).expand(40, -1)
    by_seed = drawn(logits, [row(seed, 7) for seed in range(40)])
    by_position = drawn(logits, [row(7, position) for position in range(1, 41)])
    assert len(set(by_seed)) > 30
    assert len(set(by_position)) > 30
    assert by_seed == drawn(logits, [row(seed, 7) for seed in range(40)])


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, -(2**63)])
def test_any_64_bit_seed_will_do(seed: int) -> None:
    assert 0 <= uniform(seed, 2**40) < 1


def test_uniforms_are_what_they_have_always_been() -> None:
    """Streams must not change from one version to the next: these are numpy's Philox4x64-10."""
    assert [uniform(42, position) for position in range(3)] == [
        0.8201981478608875,
        0.36812845090913937,
        0.8767979674463799,
    ]


def test_a_nucleus_of_nothing_is_the_likeliest_token() -> None:
    logits = random_logits(3)
    rows = [row(s, temperature=9.0, top_p=0.0) for s in range(3)]
    assert drawn(logits, rows) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [1e-40, 1e-4])
def test_a_tiny_temperature_is_no_division_by_zero(temperature: float) -> None:
    logits = random_logits(3)
    rows = [row(s, temperature=temperature, top_p=0.9) for s in range(3)]
    assert drawn(logits, rows) == logits.argmax(dim=-1).tolist()


def test_logits_that_are_no_numbers_still_give_a_token() -> None:
    rows = [
        row(temperature=0.0),
        row(),
        row(top_p=0.5),
        row(top_k=2, min_p=0.1, repetition_penalty=1.2, logprobs=3),
    ]
    assert all(0 <= token < 10 for token in drawn(torch.full((4, 10), torch.nan), rows))


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.zeros(500, 4)
    logits[:, [0, 3]] = -torch.inf
    assert set(drawn(logits, [row(s) for s in range(500)])) == {1, 2}
    banned = [
        drawing(Sampling(temperature=temperature, seed=s), banned=(1, 99))
        for s, temperature in enumerate([0, 1] * 250)
    ]
    assert set(drawn(logits, banned)) == {2}


@pytest.mark.parametrize("number", [0.0, 1 - 2**-52])
def test_the_outermost_uniform_numbers_draw_no_forbidden_token(
    monkeypatch: pytest.MonkeyPatch, number: float
) -> None:
    monkeypatch.setattr(sampler, "uniform", lambda _seed, _position: number)
    logits = random_logits(20, 2000)
    logits[:, :300] = -torch.inf
    logits[:, -300:] = -torch.inf
    expected = 300 if number == 0 else 1699
    assert drawn(logits, [row()] * 20) == [expected] * 20


def test_no_rows_are_no_tokens() -> None:
    assert sample(torch.empty(0, 10), [], no_grammars()) == []


def test_a_row_that_draws_nothing_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="without a sampling"):
        sample(torch.zeros(1, 10), [dataclasses.replace(row(), sampling=None)], no_grammars())


def test_extras_change_the_draw_but_not_what_the_model_thought() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]]).repeat(3, 1)
    untouched = logits.clone()
    rows = [
        drawing(Sampling(temperature=0, logit_bias=((0, 9.0),), logprobs=2), prompt=[1]),
        drawing(Sampling(temperature=0, repetition_penalty=10, logprobs=0), prompt=[2]),
        drawing(Sampling(temperature=0), prompt=[2]),
    ]
    logprobs = logits[0].log_softmax(-1).tolist()
    first, second, third = sample(logits, rows, no_grammars())
    assert (first.token_id, second.token_id, third.token_id) == (0, 1, 2)
    assert first.logprobs is not None
    assert first.logprobs.logprob == pytest.approx(logprobs[0])
    assert [token_id for token_id, _ in first.logprobs.top] == [2, 1]
    assert [value for _, value in first.logprobs.top] == pytest.approx([logprobs[2], logprobs[1]])
    assert second.logprobs is not None
    assert second.logprobs.logprob == pytest.approx(logprobs[1])
    assert second.logprobs.top == ()
    assert third.logprobs is None
    assert torch.equal(logits, untouched)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("model") / "model")


WORDS = "start: /[a-z ]+/"

rows_of_any_kind = st.lists(
    st.builds(
        lambda sampling, prompt, output, banned: (sampling, prompt, output, banned),
        st.builds(
            Sampling,
            temperature=st.sampled_from([0.0, 0.5, 1.0]),
            top_p=st.sampled_from([1.0, 0.9]),
            top_k=st.sampled_from([0, 5]),
            min_p=st.sampled_from([0.0, 0.1]),
            repetition_penalty=st.sampled_from([1.0, 1.3]),
            frequency_penalty=st.sampled_from([0.0, 0.5]),
            logit_bias=st.sampled_from([(), ((5, 3.0), (80, -2.0))]),
            logprobs=st.sampled_from([None, 0, 3]),
            grammar=st.sampled_from([None, WORDS]),
            seed=st.integers(0, 100),
        ),
        st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=8),
        st.sampled_from(["", "the", "this and that"]),
        st.sampled_from([(), EOS]),
    ),
    min_size=2,
    max_size=7,
)


@settings(deadline=None)
@given(parts=rows_of_any_kind, seed=st.integers(0, 1000))
def test_a_draw_does_not_depend_on_its_company(
    folder: Path, parts: list[tuple[Sampling, list[int], str, tuple[int, ...]]], seed: int
) -> None:
    tokenizer = read_tokenizer(folder)
    rows = [
        drawing(
            sampling,
            name=str(index),
            prompt=prompt,
            output=tokenizer.encode(text).ids,
            banned=banned,
        )
        for index, (sampling, prompt, text, banned) in enumerate(parts)
    ]
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 4, (len(rows), VOCAB_SIZE)).astype(np.float32))
    grammars = Grammars(folder, shape(), max_held=10)
    together = sample(logits, rows, grammars)
    fresh = Grammars(folder, shape(), max_held=10)
    alone = [sample(logits[i : i + 1], rows[i : i + 1], fresh)[0] for i in range(len(rows))]
    backwards = sample(logits.flip(0), rows[::-1], grammars)[::-1]
    for first, second, third in zip(together, alone, backwards, strict=True):
        assert first.token_id == second.token_id == third.token_id
        assert_same_logprobs(first, second)
        assert_same_logprobs(first, third)


def assert_same_logprobs(one: Drawn, other: Drawn) -> None:
    if one.logprobs is None or other.logprobs is None:
        assert one.logprobs is other.logprobs
        return
    assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob)
    assert [t for t, _ in one.logprobs.top] == [t for t, _ in other.logprobs.top]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["one", "two"]}, "maxItems": 3},
        "is_new": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "tags", "is_new"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


def assert_matches_schema(value: Any) -> None:
    assert list(value) == ["name", "age", "tags", "is_new"]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 150
    assert len(value["tags"]) <= 3
    assert set(value["tags"]) <= {"one", "two"}
    assert value["is_new"] in {True, False, None}


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_model_says_a_schema_is_kept_to(folder: Path, seed: int) -> None:
    """Random logits, an end that is banned at first, and matchers lost on the way."""
    tokenizer = read_tokenizer(folder)
    grammar = schema_grammar(SCHEMA)
    rng = np.random.default_rng(seed)
    grammars = Grammars(folder, shape(), max_held=10)
    grammars.prepare("r", grammar)
    sampling = Sampling(temperature=seed % 3, top_p=0.9, seed=seed, grammar=grammar)
    output: list[int] = []
    while not output or output[-1] not in EOS:
        assert len(output) < 300
        if rng.random() < 0.1:
            grammars.forget("r")
        banned = (*EOS, 40) if len(output) < 5 else ()
        logits = torch.from_numpy(rng.normal(0, 5, (1, VOCAB_SIZE)).astype(np.float32))
        (result,) = sample(logits, [drawing(sampling, output=output, banned=banned)], grammars)
        assert result.token_id is not None
        output.append(result.token_id)
    assert_matches_schema(json.loads(tokenizer.decode(output[:-1])))


def test_an_output_that_left_its_grammar_ends_and_the_others_go_on(folder: Path) -> None:
    tokenizer = read_tokenizer(folder)
    grammars = Grammars(folder, shape(), max_held=10)
    lost = Sampling(temperature=1, grammar=WORDS)
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, tokenizer.token_to_id("e")] = 50
    logits[:, TURN_END] = -50
    rows = [
        drawing(lost, name="good"),
        drawing(lost, name="bad", output=tokenizer.encode("[12]").ids),
        drawing(Sampling(temperature=1), name="free"),
    ]
    good, bad, free = sample(logits, rows, grammars)
    assert bad.token_id in EOS
    assert good.token_id == free.token_id == tokenizer.token_to_id("e")
