"""Tells what the model itself thought: log probabilities before penalties, bias and temperature.

Tokens that are equally likely come in the order of their ids.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from anole_worker.core.step import Score, TokenLogprobs

_MARGIN = 12
"""Tokens looked at beyond those asked for, so that ties at the end are seldom cut apart."""

_PART = 32
"""Rows measured at once: with all of a prompt's, a CPU is busy finding memory for intermediates."""


def score(logits: Tensor, score: Score) -> tuple[TokenLogprobs, ...]:
    """Of the tokens that `score` names; logits [tokens, vocab] are those of the tokens before.

    There may be logits of one token more, the prompt's last: no token of the prompt follows it.
    """
    token_ids = torch.tensor(score.token_ids, dtype=torch.long)
    token_ids = token_ids.to(logits.device, non_blocking=True)
    parts = [
        (part, measure(part, ids, score.num_top))
        for part, ids in zip(
            logits[: len(token_ids)].split(_PART), token_ids.split(_PART), strict=True
        )
        if len(part)
    ]
    return tuple(
        told
        for part, measured in parts
        for told in read(measured.cpu(), part, [score.num_top] * len(part))
    )


def measure(logits: Tensor, token_ids: Tensor, num_top: int) -> Tensor:
    """For read, which see; still on the device. [rows, columns] float64.

    `token_ids` [rows] are the tokens to tell of, and `num_top` is the most that a row asks for.
    """
    normalisers = logits.logsumexp(dim=-1, keepdim=True).double()
    columns = [normalisers, logits.gather(1, token_ids[:, None]).double()]
    if num_top:
        top = logits.topk(min(num_top + _MARGIN, logits.shape[-1]))
        columns += [top.values.double(), top.indices.double()]
    return torch.cat(columns, dim=-1)


def read(measured: Tensor, logits: Tensor, num_top: Sequence[int]) -> list[TokenLogprobs]:
    """What `measure` found in these logits, copied to the host; num_top for each row."""
    table = measured.numpy()
    normalisers, chosen = table[:, 0], table[:, 1]
    values, token_ids = np.split(table[:, 2:], 2, axis=-1)
    order = np.lexsort((token_ids, -values), axis=-1)
    values = np.take_along_axis(values, order, axis=-1)
    token_ids = np.take_along_axis(token_ids, order, axis=-1).astype(np.int64)
    own = (chosen - normalisers).tolist()
    others = (values - normalisers[:, None]).tolist()
    result = []
    for row, count in enumerate(num_top):
        ids = token_ids[row].tolist()
        if count and len(ids) < logits.shape[-1] and values[row, count - 1] == values[row, -1]:
            ids = _in_order(ids, values[row], logits[row])
        top = tuple(zip(ids[:count], others[row][:count], strict=True))
        result.append(TokenLogprobs(logprob=own[row], top=top))
    return result


def _in_order(ids: list[int], values: np.ndarray, logits: Tensor) -> list[int]:
    """The ids again, where more tokens are as likely as the last of them than it has."""
    num_likelier = int((values > values[-1]).sum())
    ties = (logits == values[-1]).nonzero().flatten()[: len(ids) - num_likelier]
    return ids[:num_likelier] + [int(token_id) for token_id in ties]
