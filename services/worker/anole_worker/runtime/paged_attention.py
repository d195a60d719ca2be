"""Attention on a GPU: single tokens by a Triton kernel over blocks, prompts by torch.

A prompt's chunk with a past has its keys and values copied together first, which costs little
beside the chunk's own products; torch's attention then takes them. A single token reads them where
they are, split among programs so that few rows keep a GPU busy too. Only a worker with a GPU
imports this, and Triton with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from anole_worker.runtime.attention import attend_to
from anole_worker.runtime.kv_blocks import KvBlocks
from anole_worker.runtime.paged_kernels import LEAST_HEADS, attend, combine, gather, store

_PROGRAMS = 512
"""What keeps a GPU of Hopper's kind busy: 132 multiprocessors, four programs on each."""
_MAX_SPLITS = 16
_BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRows:
    """Rows of one new token each."""

    tokens: Tensor | None
    """[rows]: which of the step's tokens they are; None when they are all of them."""
    lengths: Tensor
    """[rows] int64, the new token counted."""
    tables: Tensor
    """[blocks, rows] int64: the addresses of each row's blocks, in its column."""
    row_stride: int
    """From one block of a row's table to the next, in numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one row."""

    begin: int
    end: int
    past: int
    """Tokens of the sequence before them."""
    table: Tensor
    """[blocks] int64: the addresses of the sequence's blocks."""
    is_seen: Tensor | None
    """[tokens, past + tokens] bool: causal; None without a past."""


class PagedAttention:
    """Attention of the steps of one GPU."""

    def __init__(self, blocks: KvBlocks, max_rows: int) -> None:
        """max_rows: of single tokens in one step. Steps must run one after the other.

        Takes memory for what the splits of a step find: at most _MAX_SPLITS for a row, and for
        many rows fewer. On a GPU, keeps torch from attending by cuDNN, in the whole process.
        """
        if blocks.device.type == "cuda":
            # torch prefers it on Hopper. It plans tens of milliseconds for every pair of lengths,
            # which hardly come twice here.
            torch.backends.cuda.enable_cudnn_sdp(False)
        shape = self._shape = blocks.shape
        self._block_size = blocks.block_size
        self._plane = blocks.block_size * shape.head_dim
        self._layer_size = 2 * shape.num_kv_heads * self._plane
        self._group = shape.num_heads // shape.num_kv_heads
        self._block_dim = triton.next_power_of_2(shape.head_dim)
        self._widens = blocks.dtype == torch.bfloat16 and triton.knobs.runtime.interpret
        most = max(rows * self._num_splits(rows) for rows in range(1, max_rows + 1))
        numbers = most * shape.num_heads
        self._sums = torch.empty(numbers * shape.head_dim, device=blocks.device)
        self._weights = torch.empty(numbers * 2, device=blocks.device)

    def __call__(
        self,
        queries: Tensor,
        keys_values: Tensor,
        layer: int,
        *,
        places: Tensor,
        decodes: DecodeRows | None,
        chunks: Sequence[Chunk],
    ) -> Tensor:
        """As network.Attend says. places [tokens] int64: where KvBlocks has the new tokens'."""
        self._store(keys_values, places, layer)
        if decodes is not None and decodes.tokens is None:
            return self._decode(queries, decodes, layer)
        result = queries.new_empty(queries.shape[0], queries.shape[1] * queries.shape[2])
        if decodes is not None and decodes.tokens is not None:
            own = queries.index_select(0, decodes.tokens)
            result.index_copy_(0, decodes.tokens, self._decode(own, decodes, layer))
        for chunk in chunks:
            part = slice(chunk.begin, chunk.end)
            result[part] = self._attend_chunk(queries[part], keys_values[part], layer, chunk)
        return result

    def _store(self, keys_values: Tensor, places: Tensor, layer: int) -> None:
        num_planes = keys_values.shape[1]
        store[len(keys_values),](
            keys_values=keys_values,
            places=places,
            layer=layer,
            layer_size=self._layer_size,
            token_stride=keys_values.stride(0),
            plane=self._plane,
            num_planes=num_planes,
            head_dim=self._shape.head_dim,
            block_planes=triton.next_power_of_2(num_planes),
            block_dim=self._block_dim,
        )

    def _num_splits(self, num_rows: int) -> int:
        """Always a power of two, so that there are few kernels to compile."""
        programs = num_rows * self._shape.num_kv_heads
        most = min(_MAX_SPLITS, max(1, _PROGRAMS // programs))
        return 1 << (most.bit_length() - 1)

    def _decode(self, queries: Tensor, rows: DecodeRows, layer: int) -> Tensor:
        """From queries [rows, heads, head_dim] to [rows, heads * head_dim]."""
        num_rows, num_heads, head_dim = queries.shape
        num_splits = self._num_splits(num_rows)
        attend[num_rows, self._shape.num_kv_heads, num_splits](
            queries=queries,
            tables=rows.tables,
            lengths=rows.lengths,
            sums=self._sums,
            weights=self._weights,
            layer=layer,
            layer_size=self._layer_size,
            num_rows=rows.row_stride,
            query_stride=queries.stride(0),
            plane=self._plane,
            block_size=self._block_size,
            scale=head_dim**-0.5,
            num_kv_heads=self._shape.num_kv_heads,
            group=self._group,
            head_dim=head_dim,
            block_group=max(LEAST_HEADS.value, triton.next_power_of_2(self._group)),
            block_tokens=_BLOCK_TOKENS,
            block_dim=self._block_dim,
            widen=self._widens,
        )
        attended = queries.new_empty(num_rows, num_heads * head_dim)
        combine[num_rows * num_heads,](
            attended=attended,
            sums=self._sums,
            weights=self._weights,
            num_splits=num_splits,
            head_dim=head_dim,
            block_dim=self._block_dim,
        )
        return attended

    def _attend_chunk(
        self, queries: Tensor, keys_values: Tensor, layer: int, chunk: Chunk
    ) -> Tensor:
        """From queries [tokens, heads, head_dim] to [tokens, heads * head_dim]."""
        if chunk.past == 0:
            keys, values = keys_values.transpose(0, 1).chunk(2)
        else:
            num_all = chunk.past + len(queries)
            keys, values = self._gather(keys_values, layer, chunk.table, num_all)
        return attend_to(queries, keys, values, chunk.is_seen)

    def _gather(
        self, like: Tensor, layer: int, table: Tensor, num_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """Copies of a sequence's keys and values, each [kv_heads, tokens, head_dim]."""
        num_planes, head_dim = like.shape[1:]
        found = like.new_empty(num_planes, num_tokens, head_dim)
        gather[triton.cdiv(num_tokens, _BLOCK_TOKENS), num_planes](
            found=found,
            table=table,
            layer=layer,
            layer_size=self._layer_size,
            num_tokens=num_tokens,
            plane=self._plane,
            block_size=self._block_size,
            head_dim=head_dim,
            block_tokens=_BLOCK_TOKENS,
            block_dim=self._block_dim,
        )
        return found[: self._shape.num_kv_heads], found[self._shape.num_kv_heads :]
