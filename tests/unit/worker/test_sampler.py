from collections import Counter

import pytest
import torch

from anole_worker.core.step import Sampling
from anole_worker.runtime import sampler
from anole_worker.runtime.sampler import sample, uniform


def sampling(seed: int, *, temperature: float = 1, top_p: float = 1) -> Sampling:
    return Sampling(temperature=temperature, top_p=top_p, seed=seed)


def random_logits(num_rows: int, vocab_size: int = 1000) -> torch.Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(0)) * 3


def test_no_temperature_takes_the_likeliest_token() -> None:
    logits = random_logits(5)
    drawn = sample(logits, [sampling(seed, temperature=0) for seed in range(5)], [0] * 5)
    assert drawn == logits.argmax(dim=-1).tolist()


def test_a_draw_does_not_depend_on_its_company() -> None:
    logits = random_logits(6)
    samplings = [
        sampling(1),
        sampling(2, temperature=0),
        sampling(3, top_p=0.9),
        sampling(4, temperature=0.3, top_p=0.999),
        sampling(5, temperature=5, top_p=0.9999),
        sampling(6, temperature=2),
    ]
    positions = [3, 1, 4, 1, 5, 9]
    together = sample(logits, samplings, positions)
    alone = [
        sample(logits[index : index + 1], [samplings[index]], [positions[index]])[0]
        for index in range(6)
    ]
    reversed_draw = sample(logits.flip(0), samplings[::-1], positions[::-1])[::-1]
    assert together == alone == reversed_draw


def test_seeds_and_positions_give_other_tokens() -> None:
    logits = torch.zeros(1, 1000).expand(40, -1)
    by_seed = sample(logits, [sampling(seed) for seed in range(40)], [7] * 40)
    by_position = sample(logits, [sampling(7)] * 40, list(range(40)))
    assert len(set(by_seed)) > 30
    assert len(set(by_position)) > 30
    assert by_seed == sample(logits, [sampling(seed) for seed in range(40)], [7] * 40)


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


@pytest.mark.parametrize(("temperature", "top_p"), [(1, 1), (0.7, 1), (1.5, 1), (1, 0.8)])
def test_tokens_are_drawn_as_often_as_their_probabilities_say(
    temperature: float, top_p: float
) -> None:
    """Chi-square over fixed seeds; a fair sampler exceeds the limit once in 1000 such sets."""
    num_draws = 4000
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, 1.9])
    expected = (logits / temperature).softmax(-1)
    order = expected.argsort(descending=True)
    before = expected[order].cumsum(-1) - expected[order]
    expected[order[before >= top_p]] = 0
    expected = expected / expected.sum()
    samplings = [sampling(s, temperature=temperature, top_p=top_p) for s in range(num_draws)]
    drawn = Counter(sample(logits.expand(num_draws, -1), samplings, [11] * num_draws))
    possible = expected.nonzero().flatten().tolist()
    assert drawn.keys() <= set(possible)
    chi_square = sum(
        (drawn[token] - num_draws * expected[token].item()) ** 2
        / (num_draws * expected[token].item())
        for token in possible
    )
    limits = {3: 13.8, 4: 16.3, 5: 18.5, 8: 24.3}
    assert chi_square < limits[len(possible)]


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [0.5, 1, 20])
def test_only_the_nucleus_is_drawn_from(top_p: float, temperature: float) -> None:
    """A high temperature makes the nucleus wider than the first guess of its size."""
    logits = random_logits(1)
    probabilities = (logits[0] / temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    size = int((probabilities[order].double().cumsum(-1) < top_p).sum()) + 1
    nucleus = set(order[:size].tolist())
    samplings = [sampling(s, temperature=temperature, top_p=top_p) for s in range(300)]
    drawn = sample(logits.expand(300, -1), samplings, list(range(300)))
    assert set(drawn) <= nucleus
    assert size == 1 or len(set(drawn)) > 1
    assert size <= 600 or not set(drawn) <= set(order[:256].tolist())


def test_a_nucleus_of_nothing_is_the_likeliest_token() -> None:
    logits = random_logits(3)
    samplings = [sampling(s, temperature=9, top_p=0) for s in range(3)]
    assert sample(logits, samplings, [0] * 3) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("temperature", [1e-40, 1e-4])
def test_a_tiny_temperature_is_no_division_by_zero(temperature: float) -> None:
    logits = random_logits(3)
    samplings = [sampling(s, temperature=temperature, top_p=0.9) for s in range(3)]
    assert sample(logits, samplings, [0] * 3) == logits.argmax(dim=-1).tolist()


def test_logits_that_are_no_numbers_still_give_a_token() -> None:
    logits = torch.full((3, 10), torch.nan)
    samplings = [sampling(0, temperature=0), sampling(0), sampling(0, top_p=0.5)]
    assert all(0 <= token < 10 for token in sample(logits, samplings, [0] * 3))


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.zeros(500, 4)
    logits[:, [0, 3]] = -torch.inf
    drawn = sample(logits, [sampling(s) for s in range(500)], [0] * 500)
    assert set(drawn) == {1, 2}


def test_the_least_uniform_number_draws_no_forbidden_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "uniform", lambda _seed, _position: 0.0)
    logits = torch.tensor([[-torch.inf, 1.0, 2.0]])
    assert sampler.sample(logits, [sampling(0)], [0]) == [1]


def test_no_rows_are_no_tokens() -> None:
    assert sample(torch.empty(0, 10), [], []) == []
