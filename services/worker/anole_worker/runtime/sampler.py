"""Draws the next token of each row from its logits.

A draw depends on nothing but the seed, the position of the drawn token and the logits. The uniform
number comes from a counter-based generator (Philox: J. Salmon et al., "Parallel random numbers: as
easy as 1, 2, 3", SC 2011) with the seed as its key and the position as its counter. No generator
has a state, so a request that is run again from any of its tokens on goes on in the same way.

The logits themselves move by about 1e-5 with the company that a row has in its batch: a matrix
product adds its terms in an order that depends on the number of rows. A token can therefore change
where two are within that of each other, or where the uniform number falls that close to the border
between two; for sampled tokens that is about one in 100,000.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from anole_worker.core.step import Sampling

_SEED_MASK = (1 << 64) - 1
_UNIFORM_BITS = 52
_NUCLEUS_GUESS = 256


def sample(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> list[int]:
    """One token for each row of logits [rows, vocab]; positions are those of the drawn tokens."""
    tokens = torch.from_numpy(logits.numpy().argmax(axis=-1))  # ten times as fast as torch's
    drawn = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if drawn:
        chosen = [samplings[index] for index in drawn]
        temperatures = logits.new_tensor([sampling.temperature for sampling in chosen])
        uniforms = torch.tensor(
            [
                uniform(sampling.seed, positions[index])
                for sampling, index in zip(chosen, drawn, strict=True)
            ],
            dtype=torch.float64,
        )
        top_p = torch.tensor([sampling.top_p for sampling in chosen], dtype=torch.float64)
        tokens[drawn] = _draw(logits[drawn], temperatures, top_p, uniforms)
    return [int(token) for token in tokens]


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a seed and a position."""
    bits = np.random.Philox(key=seed & _SEED_MASK, counter=position).random_raw()
    return float(bits >> (64 - _UNIFORM_BITS)) / (1 << _UNIFORM_BITS)


def _draw(logits: Tensor, temperatures: Tensor, top_p: Tensor, uniforms: Tensor) -> Tensor:
    """By inverse CDF in the order of the token ids, which no noise in the logits can change."""
    likeliest = logits.amax(dim=-1, keepdim=True)
    probabilities = ((logits - likeliest) / temperatures[:, None]).softmax(dim=-1)
    narrowed = (top_p < 1).nonzero().flatten()
    if len(narrowed):
        probabilities[narrowed] = _nucleus(probabilities[narrowed], top_p[narrowed])
    cumulative = probabilities.double().cumsum(dim=-1)
    # Strictly less than the total: uniforms have a bit less than a double holds.
    targets = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True).flatten()
    return tokens.clamp_(max=logits.shape[-1] - 1)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The probabilities of the fewest likeliest tokens that reach top_p, and zero for others."""
    guess = min(_NUCLEUS_GUESS, probabilities.shape[-1])
    ordered, token_ids = probabilities.topk(guess)
    result = _keep(probabilities, ordered, token_ids, top_p)
    wider = (ordered.double().sum(dim=-1) < top_p).nonzero().flatten()
    if len(wider):
        ordered, token_ids = probabilities[wider].sort(descending=True)
        result[wider] = _keep(probabilities[wider], ordered, token_ids, top_p[wider])
    return result


def _keep(probabilities: Tensor, ordered: Tensor, token_ids: Tensor, top_p: Tensor) -> Tensor:
    reached = ordered.double().cumsum(dim=-1) - ordered
    is_kept = reached < top_p[:, None]
    is_kept[:, 0] = True
    return torch.zeros_like(probabilities).scatter_(1, token_ids, ordered * is_kept)
