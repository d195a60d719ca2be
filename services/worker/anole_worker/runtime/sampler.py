"""Draws the next token of each row from its logits.

The logits are changed in this order: penalties, biases, bans, the grammar's mask. Then the
likeliest token is taken, or one is drawn at a temperature from what min_p, top_k and top_p leave.

A draw depends on nothing but the seed, the position of the drawn token, the logits and the tokens
before it. The uniform number comes from a counter-based generator (Philox: J. Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011) with the seed as its key and the position
as its counter. No generator has a state, so a request that is run again from any of its tokens on
goes on in the same way.

The logits themselves move by about 1e-5 with the company that a row has in its batch: a matrix
product adds its terms in an order that depends on the number of rows. A token can therefore change
where two are within that of each other, or where the uniform number falls that close to the border
between two; for sampled tokens that is about one in 100,000.

On an accelerator all of this is queued without waiting, and one copy brings the results back.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from anole_worker.core.step import Drawn, Row, Sampling
from anole_worker.runtime.grammar import Grammars, constrain
from anole_worker.runtime.logprobs import measure, read
from anole_worker.runtime.narrowing import narrow
from anole_worker.runtime.penalties import adjust, is_adjusted

_SEED_MASK = (1 << 64) - 1
_UNIFORM_BITS = 52
_CHUNK = 128
"""Tokens that the draw adds up at once; it divides the vocabularies of all common models."""


def sample(logits: Tensor, rows: Sequence[Row], grammars: Grammars) -> list[Drawn]:
    """One token for each row of logits [rows, vocab] fp32, which stay as they are.

    Every row has a sampling. The drawn token's position is the one behind the row's tokens.
    """
    samplings = [row.sampling for row in rows if row.sampling is not None]
    if len(samplings) != len(rows):
        raise ValueError("a row without a sampling draws nothing: leave it out, and its logits")
    if not rows:
        return []
    positions = [row.start + len(row.token_ids) for row in rows]
    token_ids = _choose(_shape(logits, rows, grammars), samplings, positions)
    told = [index for index, sampling in enumerate(samplings) if sampling.logprobs is not None]
    if not told:
        return [Drawn(token_id=token_id) for token_id in token_ids.tolist()]
    num_top = [samplings[index].logprobs or 0 for index in told]
    part = _rows(logits, told)
    measured = measure(part, _rows(token_ids, told), max(num_top))
    # One copy for both; float64 holds any token id.
    results = torch.cat((token_ids.double(), measured.flatten())).cpu()
    logprobs = dict(
        zip(told, read(results[len(rows) :].view(len(told), -1), part, num_top), strict=True)
    )
    return [
        Drawn(token_id=int(token_id), logprobs=logprobs.get(index))
        for index, token_id in enumerate(results[: len(rows)].tolist())
    ]


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a seed and a position."""
    bits = np.random.Philox(key=seed & _SEED_MASK, counter=position).random_raw()
    return float(bits >> (64 - _UNIFORM_BITS)) / (1 << _UNIFORM_BITS)


def _rows(tensor: Tensor, indices: Sequence[int]) -> Tensor:
    if len(indices) == len(tensor):
        return tensor
    return tensor.index_select(0, torch.tensor(indices).to(tensor.device, non_blocking=True))


def _shape(logits: Tensor, rows: Sequence[Row], grammars: Grammars) -> Tensor:
    """The logits that the rows' samplings make of the model's."""
    constrained = [
        index for index, row in enumerate(rows) if row.sampling and row.sampling.grammar is not None
    ]
    if not constrained and not any(map(is_adjusted, rows)):
        return logits
    shaped = logits.clone(memory_format=torch.contiguous_format)
    adjust(shaped, rows)
    if constrained:
        constrain(shaped, {index: grammars.mask(rows[index]) for index in constrained})
    return shaped


def _choose(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    """A token for each row: [rows] int64."""
    drawn = [index for index, sampling in enumerate(samplings) if sampling.temperature > 0]
    if len(drawn) == len(samplings):
        return _draw(logits, samplings, positions)
    token_ids = _argmax(logits)
    if drawn:
        tokens = _draw(
            _rows(logits, drawn),
            [samplings[index] for index in drawn],
            [positions[index] for index in drawn],
        )
        at = torch.tensor(drawn).to(logits.device, non_blocking=True)
        token_ids.index_copy_(0, at, tokens)
    return token_ids


def _argmax(logits: Tensor) -> Tensor:
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))  # ten times as fast as torch's
    return logits.argmax(dim=-1)


def _draw(logits: Tensor, samplings: Sequence[Sampling], positions: Sequence[int]) -> Tensor:
    # To the base of two: torch's exp is slow on a CPU where results vanish. Dividing by a denormal
    # number could be dividing by zero.
    divisors = torch.tensor([s.temperature * math.log(2) for s in samplings], dtype=torch.float32)
    divisors = divisors.clamp_(min=torch.finfo(torch.float32).tiny)
    uniforms = torch.tensor(
        [uniform(s.seed, position) for s, position in zip(samplings, positions, strict=True)],
        dtype=torch.float64,
    )
    weights = logits - logits.amax(dim=-1, keepdim=True)
    weights.div_(divisors.to(logits.device, non_blocking=True)[:, None]).exp2_()
    narrow(weights, samplings)
    return _invert(weights, uniforms.to(logits.device, non_blocking=True))


def _invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw by inverse CDF in the order of the token ids, which no noise in the logits can change.

    First the chunk is found in which the CDF passes the uniform number, then the token in it.
    """
    num_rows, vocab_size = weights.shape
    if vocab_size % _CHUNK:
        weights = functional.pad(weights, (0, -vocab_size % _CHUNK))
    chunks = weights.view(num_rows, -1, _CHUNK)
    sums = chunks.sum(dim=-1).double().cumsum(dim=-1)
    # Strictly less than the total: uniforms have a bit less than a double holds. So neither here
    # nor below is one found that weighs nothing.
    targets = uniforms[:, None] * sums[:, -1:]
    found = torch.searchsorted(sums, targets, right=True).clamp_(max=chunks.shape[1] - 1)
    before = functional.pad(sums, (1, 0)).gather(1, found)
    within = chunks.take_along_dim(found[:, :, None], dim=1).squeeze(1).double().cumsum(dim=-1)
    # The chunk's sum was rounded otherwise: the rest may be no less than all of the chunk.
    most = torch.nextafter(within[:, -1:], torch.zeros_like(before))
    rest = torch.minimum(targets - before, most)
    token_ids = found * _CHUNK + torch.searchsorted(within, rest, right=True)
    return token_ids.flatten().clamp_(max=vocab_size - 1)
