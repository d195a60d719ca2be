"""Random rows over blocks anywhere in memory: the plain reference, and the kernels run on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_shared.ids import RequestId
from anole_shared.units import div_ceil
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.kv_blocks import KvBlocks
from anole_worker.runtime.network import Batch

NUM_LAYERS, LAYER = 2, 1
NUM_BLOCKS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    num_kv_heads: int
    group: int
    """Query heads that share a key head."""
    head_dim: int
    block_size: int
    dtype: torch.dtype
    lengths: tuple[tuple[int, int], ...]
    """Of each row: tokens of the past, new tokens."""
    seed: int

    @property
    def shape(self) -> ModelShape:
        num_heads = self.num_kv_heads * self.group
        return ModelShape(
            family="llama",
            num_layers=NUM_LAYERS,
            hidden_size=num_heads * self.head_dim,
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=8,
            vocab_size=8,
            max_model_len=4096,
            eos_token_ids=(2,),
        )

    @property
    def step(self) -> Step:
        """The rows over shuffled blocks, of which each has one more than it needs."""
        generator = torch.Generator().manual_seed(self.seed)
        left = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
        return Step(
            rows=tuple(
                Row(
                    request_id=RequestId(str(index)),
                    adapter=None,
                    token_ids=(1,) * new,
                    start=past,
                    block_table=tuple(
                        left.pop() for _ in range(div_ceil(past + new, self.block_size) + 1)
                    ),
                    sampling=Sampling(temperature=0),
                )
                for index, (past, new) in enumerate(self.lengths)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A case's numbers."""

    queries: Tensor
    """[new tokens of all rows, heads, head_dim]"""
    keys_values: tuple[Tensor, ...]
    """Of each row: [past + new, 2 * kv_heads, head_dim]."""

    @staticmethod
    def of(case: Case) -> "Numbers":
        generator = torch.Generator().manual_seed(case.seed)

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(case.dtype)

        num_tokens = sum(new for _, new in case.lengths)
        return Numbers(
            queries=random(num_tokens, case.num_kv_heads * case.group, case.head_dim),
            keys_values=tuple(
                random(past + new, 2 * case.num_kv_heads, case.head_dim)
                for past, new in case.lengths
            ),
        )


def reference(case: Case) -> NDArray[np.float64]:
    """In float64, one query at a time."""
    numbers, found, begin = Numbers.of(case), [], 0
    for (past, new), both in zip(case.lengths, numbers.keys_values, strict=True):
        keys, values = both.double().repeat_interleave(case.group, dim=1).chunk(2, dim=1)
        for offset, query in enumerate(numbers.queries[begin : begin + new].double()):
            end = past + offset + 1
            scores = torch.einsum("hd,khd->hk", query, keys[:end]) / case.head_dim**0.5
            found.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[:end]).flatten())
        begin += new
    return torch.stack(found).numpy()


def run(case: Case, device_name: str) -> NDArray[np.float64]:
    """By the kernels. Whatever else is in memory is no number, so that nothing else is read."""
    from anole_worker.runtime.gpu_batches import GpuBatches, GpuParts
    from anole_worker.runtime.lora_triton import TritonBackend
    from anole_worker.runtime.paged_attention import PagedAttention

    device = torch.device(device_name)
    blocks = KvBlocks(case.shape, case.block_size, dtype=case.dtype, device=device)
    parts = GpuParts(
        blocks=blocks,
        attention=PagedAttention(blocks, max_rows=len(case.lengths)),
        lora=TritonBackend(case.shape, dtype=case.dtype, device=device, max_tokens=1),
    )
    parts.attention._sums.fill_(float("nan"))
    batches, step, numbers = GpuBatches(parts), case.step, Numbers.of(case)
    blocks.addresses([block for row in step.rows for block in row.block_table])
    for block in blocks._blocks.values():
        block.fill_(float("nan"))
    past = Step(rows=tuple(_past(row) for row in step.rows if row.start))
    if past.rows:
        pasts = [
            kv[:start] for (start, _), kv in zip(case.lengths, numbers.keys_values, strict=True)
        ]
        stored = torch.cat(pasts).to(device)
        _attend(
            batches.make(past, {}),
            stored.new_zeros(len(stored), *numbers.queries.shape[1:]),
            stored,
        )
    new = [kv[start:] for (start, _), kv in zip(case.lengths, numbers.keys_values, strict=True)]
    attended = _attend(
        batches.make(step, {}), numbers.queries.to(device), torch.cat(new).to(device)
    )
    result: NDArray[np.float64] = attended.cpu().double().numpy()
    return result


def _past(row: Row) -> Row:
    return Row(
        request_id=row.request_id,
        adapter=None,
        token_ids=(1,) * row.start,
        start=0,
        block_table=row.block_table,
        sampling=None,
    )


def _attend(batches: Sequence[Batch], queries: Tensor, keys_values: Tensor) -> Tensor:
    """With both as parts of one matrix, as a layer has them."""
    (batch,) = batches
    both = torch.cat((queries, keys_values), dim=1)
    own, rest = both.tensor_split((queries.shape[1],), dim=1)
    attended: Tensor = batch.attend(own, rest, LAYER)
    return attended
