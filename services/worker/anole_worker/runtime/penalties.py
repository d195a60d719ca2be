"""Changes logits before the draw: penalties for what was said already, then biases and bans.

The repetition penalty is that of CTRL (N. Keskar et al., 2019) as transformers and vLLM read it:
tokens of the prompt or the output have their logit divided by it where positive and multiplied
where negative. Presence and frequency penalties are OpenAI's: each token of the output loses the
former once and the latter as often as it occurs. Biases are added to what that leaves.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.core.step import Row, Sampling


def is_adjusted(row: Row) -> bool:
    """Whether adjust does anything to the row's logits."""
    sampling = row.sampling
    return sampling is not None and bool(
        _has_penalties(sampling) or sampling.logit_bias or _bans(row)
    )


def adjust(logits: Tensor, rows: Sequence[Row]) -> None:
    """Apply penalties, biases and bans in place, to contiguous logits [rows, vocab].

    Ids beyond the vocabulary have no logit and are passed over. A row with a grammar keeps the
    tokens that are banned: the grammar knows what would be left of it, so its mask bans them.
    """
    _penalise(logits, rows)
    _bias(logits, rows)
    _ban(logits, rows)


def _has_penalties(sampling: Sampling) -> bool:
    return (
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
    ) != (1.0, 0.0, 0.0)


def _bans(row: Row) -> tuple[int, ...]:
    has_grammar = row.sampling is not None and row.sampling.grammar is not None
    return () if has_grammar else row.banned_token_ids


def _penalise(logits: Tensor, rows: Sequence[Row]) -> None:
    places, factors, amounts = [], [], []
    for index, row in enumerate(rows):
        sampling = row.sampling
        if sampling is None or not _has_penalties(sampling):
            continue
        token_ids, counts = _occurrences(row, sampling)
        places.append(token_ids + index * logits.shape[-1])
        factors.append(np.full(len(token_ids), sampling.repetition_penalty, np.float32))
        amounts.append(
            sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
        )
    if not places:
        return
    at = _tensor(np.concatenate(places), logits.device)
    factor = _tensor(np.concatenate(factors), logits.device)
    amount = _tensor(np.concatenate(amounts).astype(np.float32), logits.device)
    flat = logits.view(-1)
    values = flat.index_select(0, at)
    values = torch.where(values > 0, values / factor, values * factor)
    flat.index_copy_(0, at, values - amount)


def _occurrences(row: Row, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The tokens that are penalised, each once, and how often the output has each."""
    if row.history is None:
        raise ValueError(f"{row.request_id} has penalties but its row has no history")
    if sampling.repetition_penalty == 1:
        output = row.history.output_token_ids
        return np.unique(np.fromiter(output, np.int64, len(output)), return_counts=True)
    token_ids = row.history.token_ids
    all_ids, places = np.unique(
        np.fromiter(token_ids, np.int64, len(token_ids)), return_inverse=True
    )
    counts = np.bincount(places[row.history.num_prompt_tokens :], minlength=len(all_ids))
    return all_ids, counts


def _bias(logits: Tensor, rows: Sequence[Row]) -> None:
    places, amounts = [], []
    for index, row in enumerate(rows):
        if row.sampling is None or not row.sampling.logit_bias:
            continue
        token_ids, biases = np.array(row.sampling.logit_bias).T
        is_known = (token_ids >= 0) & (token_ids < logits.shape[-1])
        places.append(token_ids[is_known].astype(np.int64) + index * logits.shape[-1])
        amounts.append(biases[is_known])
    if places:
        at = _tensor(np.concatenate(places), logits.device)
        amount = _tensor(np.concatenate(amounts).astype(np.float32), logits.device)
        logits.view(-1).index_add_(0, at, amount)


def _ban(logits: Tensor, rows: Sequence[Row]) -> None:
    vocab_size = logits.shape[-1]
    banned = [
        index * vocab_size + token_id
        for index, row in enumerate(rows)
        for token_id in _bans(row)
        if 0 <= token_id < vocab_size
    ]
    if banned:
        at = _tensor(np.array(banned), logits.device)
        logits.view(-1).index_fill_(0, at, -torch.inf)


def _tensor(array: NDArray[np.int64] | NDArray[np.float32], device: torch.device) -> Tensor:
    """On the device, without waiting for what runs there."""
    return torch.from_numpy(array).to(device, non_blocking=True)
