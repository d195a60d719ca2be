"""A step as tensors: made once, then used by every layer.

All rows' new tokens stand one after the other in one matrix, prompt chunks and single tokens
alike; only attention has to know where one sequence ends and the next begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Step
from anole_worker.runtime.kv_cache import KvCache


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRows:
    """Rows whose attention is a compiled loop's."""

    rows: NDArray[np.int64]
    """[rows, 4]: the first of its tokens in the step, how many they are, and where in `slots` its
    sequence begins and ends."""
    slots: NDArray[np.int64]
    """All slots of the sequences, one after the other, the rows' own tokens' last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChunk:
    """The consecutive tokens of a row whose attention is torch's."""

    begin: int
    end: int
    slots: Tensor | None
    """[past + tokens]: all of the sequence; None when nothing of it precedes the chunk."""
    mask: Tensor | None
    """[tokens, past + tokens]: 0 or minus infinity; None with slots: causal by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of one adapter."""

    adapter: Adapter
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedStep:
    """What a forward pass needs to know of its step; `tokens` counts the new tokens of all rows."""

    token_ids: Tensor
    """[tokens]"""
    positions: Tensor
    """[1, tokens]"""
    slots: Tensor
    """[tokens]: where the new keys and values go."""
    loop_rows: LoopRows | None
    """None where there are no such."""
    chunks: tuple[PromptChunk, ...]
    segments: tuple[Segment, ...]
    sampled: Tensor
    """[rows that sample]: the last token of each."""


def pack(step: Step, cache: KvCache, dtype: torch.dtype, *, has_loop: bool = False) -> PackedStep:
    """Lay a step out, which must not be empty; masks are of the model's dtype.

    has_loop: whether there is a loop for chunks; there always is one for single tokens.
    """
    rows = step.rows
    lengths = [len(row.token_ids) for row in rows]
    ends = np.cumsum(lengths).tolist()
    begins = [end - length for end, length in zip(ends, lengths, strict=True)]
    looped = [index for index, length in enumerate(lengths) if has_loop or length == 1]
    return PackedStep(
        token_ids=torch.tensor([token_id for row in rows for token_id in row.token_ids]),
        positions=_tensor([np.arange(row.start, _end(row)) for row in rows]).unsqueeze(0),
        slots=_tensor([cache.slots(row.block_table, row.start, _end(row)) for row in rows]),
        loop_rows=_loop_rows(rows, begins, looped, cache) if looped else None,
        chunks=tuple(
            _chunk(row, begin, cache, dtype)
            for row, begin in zip(rows, begins, strict=True)
            if len(row.token_ids) > 1 and not has_loop
        ),
        segments=segments_of(rows, begins, ends),
        sampled=torch.tensor(
            [end - 1 for row, end in zip(rows, ends, strict=True) if row.sampling is not None],
            dtype=torch.long,
        ),
    )


def _end(row: Row) -> int:
    return row.start + len(row.token_ids)


def _tensor(parts: Sequence[NDArray[np.int64]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _loop_rows(
    rows: Sequence[Row], begins: Sequence[int], looped: Sequence[int], cache: KvCache
) -> LoopRows:
    """Of the rows in `looped`."""
    own = [cache.slots(rows[index].block_table, 0, _end(rows[index])) for index in looped]
    ends = np.cumsum([len(slots) for slots in own])
    table = [
        (begins[index], len(rows[index].token_ids), end - len(slots), end)
        for index, slots, end in zip(looped, own, ends, strict=True)
    ]
    return LoopRows(rows=np.array(table, dtype=np.int64), slots=np.concatenate(own))


def _chunk(row: Row, begin: int, cache: KvCache, dtype: torch.dtype) -> PromptChunk:
    num_tokens = len(row.token_ids)
    if row.start == 0:
        return PromptChunk(begin=begin, end=begin + num_tokens, slots=None, mask=None)
    num_all = row.start + num_tokens
    is_future = torch.ones(num_tokens, num_all, dtype=torch.bool).triu(row.start + 1)
    return PromptChunk(
        begin=begin,
        end=begin + num_tokens,
        slots=torch.from_numpy(cache.slots(row.block_table, 0, num_all)),
        mask=_mask(is_future, dtype),
    )


def _mask(is_hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(is_hidden.shape, dtype=dtype).masked_fill_(is_hidden, float("-inf"))


def segments_of(
    rows: Sequence[Row], begins: Sequence[int], ends: Sequence[int]
) -> tuple[Segment, ...]:
    """The rows of each adapter; rows[i]'s tokens go from begins[i] to ends[i]."""
    segments: list[Segment] = []
    for row, begin, end in zip(rows, begins, ends, strict=True):
        if row.adapter is None:
            continue
        is_same = segments and segments[-1].adapter == row.adapter
        first = segments.pop().begin if is_same else begin
        segments.append(Segment(adapter=row.adapter, begin=first, end=end))
    return tuple(segments)
