"""Runs cases through the Triton kernels; in a process of its own where these are interpreted."""

from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray

from anole_worker.runtime.lora import AdaptedTokens
from tests.property.lora_cases import Case, adapted_tokens, added, layers_of, make_batch

MAX_TOKENS = 1024
MAX_RECORDED_TOKENS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How the kernels are run."""

    is_small: bool
    """With blocks so small that every matrix has several of them."""
    is_recordable: bool
    """As a CUDA graph has it, of few tokens: with room for more, set afterwards."""


def run(case: Case, launch: Launch, device_name: str) -> NDArray[np.float64]:
    from anole_worker.runtime.lora_table import make_table
    from anole_worker.runtime.lora_triton import Blocks, TritonBackend

    device = torch.device(device_name)
    small = Blocks(inputs=32, dot_inputs=16, outputs=32)
    backend = TritonBackend(
        case.shape,
        dtype=case.dtype,
        device=device,
        max_tokens=MAX_TOKENS,
        blocks=small if launch.is_small else None,
    )
    backend.hidden.fill_(float("nan"))
    batch = make_batch(case)
    layers = layers_of(case, batch, device)
    tables = [make_table(own, case.shape).to(device) for own in layers]
    adapted = adapted_tokens(case, layers, tables)
    is_recorded = launch.is_recordable and case.num_tokens <= MAX_RECORDED_TOKENS
    num_tokens = case.num_tokens + 1 if is_recorded else case.num_tokens
    if is_recorded:
        deltas = backend.recordable(num_tokens)
        deltas.set(one_each(tables, num_tokens))
        deltas.set(adapted)
    else:
        deltas = backend.deltas(adapted)
    y = added(case, batch, deltas, device)
    check_written(backend.hidden, case, num_tokens)
    return y.numpy()


def one_each(tables: list[torch.Tensor], num_tokens: int) -> list[AdaptedTokens]:
    """What is set before: nothing of it may be left."""
    return [
        AdaptedTokens(begin=token, end=token + 1, layers=(), table=table)
        for token, table in zip(range(num_tokens), cycle(tables), strict=False)
    ]


def check_written(hidden: torch.Tensor, case: Case, num_tokens: int) -> None:
    """Programs run at the same time: none may write what is another token's, or nobody's."""
    is_own = torch.zeros(max(1, num_tokens), hidden.shape[1], dtype=torch.bool)
    begin = case.num_base
    for segment in case.segments:
        is_own[begin : begin + segment.num_tokens, : sum(rank for _, rank in segment.ranks)] = True
        begin += segment.num_tokens
    for split, written in enumerate(hidden.isfinite().cpu().split(len(is_own))):
        own = is_own[: len(written)]
        assert torch.equal(written, own) or (split and not written.any()), split
