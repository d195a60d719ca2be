"""Narrows what can be drawn: min_p, top_k and top_p, in that order.

As in vLLM, each works on what the one before it left: min_p keeps tokens at least so likely as
that fraction of the likeliest one, top_k so many of the likeliest, top_p the fewest likeliest that
reach that part of the probability of those which are left. Each is a least weight that a token
must have, and tokens that weigh exactly as much as the last one kept are kept too: what is kept
does not depend on an order among equals.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from anole_worker.core.step import Sampling

_GUESSES = (256, 4096)
"""So many of the likeliest are looked at before all of them: much faster, and mostly enough."""

_PROBE = 64
"""Every so manieth weight tells whether most are zero."""


def narrow(weights: Tensor, samplings: Sequence[Sampling]) -> None:
    """Set to zero, in place, what is not to be drawn.

    `weights` [rows, vocab] fp32 are probabilities but for a factor: each row's largest is 1.
    """
    if any(sampling.min_p > 0 for sampling in samplings):
        _cut(weights, _tensor([sampling.min_p for sampling in samplings], weights).float())
    ranked = [
        index
        for index, sampling in enumerate(samplings)
        if sampling.top_p < 1 or 0 < sampling.top_k < weights.shape[-1]
    ]
    if not ranked:
        return
    top_k = _tensor([samplings[i].top_k or weights.shape[-1] for i in ranked], weights)
    top_p = _tensor([samplings[i].top_p for i in ranked], weights)
    if len(ranked) == len(samplings):
        _cut(weights, _least(weights, top_k, top_p))
        return
    at = _tensor(ranked, weights).long()
    least = _least(weights.index_select(0, at), top_k, top_p)
    _cut(weights, weights.new_zeros(len(samplings)).index_copy_(0, at, least))


def _tensor(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(like.device, non_blocking=True)


def _cut(weights: Tensor, least: Tensor) -> None:
    is_kept = torch.ge(weights, least[:, None], out=torch.empty_like(weights))  # as 1.0 and 0.0
    weights.mul_(is_kept)


def _least(weights: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The weight of the last token that each row keeps."""
    vocab_size = weights.shape[-1]
    if weights.device.type != "cpu":
        # Whether a guess suffices could only be seen by waiting for the device.
        return _least_of(weights.sort(descending=True).values, weights, top_k, top_p)[0]
    result = weights.new_empty(len(weights))
    rest = torch.arange(len(weights))
    for guess in (*_GUESSES, vocab_size):
        part = weights if len(rest) == len(weights) else weights[rest]
        ordered = _likeliest(part, min(guess, vocab_size))
        result[rest], is_settled = _least_of(ordered, part, top_k[rest], top_p[rest])
        rest = rest[~is_settled]
        if not len(rest):
            break
    return result


def _likeliest(weights: Tensor, count: int) -> Tensor:
    """So many of each row's largest weights, largest first; on a CPU."""
    probe = weights[:, ::_PROBE]
    if count < weights.shape[-1] and 2 * probe.count_nonzero() < probe.numel():
        return weights.topk(count).values
    # Three times as fast as torch.topk, but slower where most weights are equal; as a sort, thirty
    # times as fast as torch.sort.
    begin = weights.shape[-1] - count
    largest = np.partition(weights.numpy(), begin, axis=-1)[:, begin:] if begin else weights.numpy()
    return torch.from_numpy(np.sort(largest, axis=-1)[:, ::-1].copy())


def _least_of(
    ordered: Tensor, weights: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor]:
    """The least weights, and whether `ordered` reaches far enough to be sure of them."""
    size = ordered.shape[-1]
    is_in_k = torch.arange(size, device=ordered.device) < top_k[:, None]
    values = ordered.double() * is_in_k
    sums = values.cumsum(dim=-1)
    masses = sums[:, -1]
    if size < weights.shape[-1] and (top_k > size).any():
        masses = torch.where(top_k <= size, masses, weights.sum(dim=-1, dtype=torch.float64))
    limits = torch.where(top_p < 1, top_p * masses, torch.inf)
    is_kept = is_in_k & (sums - values < limits[:, None])
    is_kept[:, 0] = True
    least = ordered.gather(1, is_kept.sum(dim=-1, keepdim=True) - 1).flatten()
    has_all = ordered[:, -1] == 0
    knows_mass = (top_k <= size) | (top_k >= weights.shape[-1])
    return least, has_all | (knows_mass & (least > ordered[:, -1]))
