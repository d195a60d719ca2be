"""The keys and values of every running sequence, in one pool of blocks a layer.

A layer's pool is [2 * kv_heads, slots, head_dim]: keys of all heads, then values. A slot holds one
token; block b is the slots from b * block_size on. A head's tokens of a block lie one after the
other, so that attention reads them in long runs; and gathering along the middle axis, for chunks of
prompts, copies whole rows of head_dim, which leaves nothing to transpose.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.model_shape import ModelShape
from anole_worker.runtime.host_memory import HostMemory


class KvCache:
    """The pool; which block belongs to whom is the caller's to know."""

    def __init__(
        self,
        shape: ModelShape,
        num_blocks: int,
        block_size: int,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Takes address space at once; the memory itself as blocks are first written."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_kv_heads = shape.num_kv_heads
        size = (2 * shape.num_kv_heads, num_blocks * block_size, shape.head_dim)
        layer_bytes = math.prod(size) * dtype.itemsize
        self._plane_bytes = num_blocks * block_size * shape.head_dim * dtype.itemsize
        self._num_planes = shape.num_layers * 2 * shape.num_kv_heads
        self._memory = HostMemory(shape.num_layers * layer_bytes)
        self._layers = tuple(
            self._memory.tensor(layer * layer_bytes, dtype, size)
            for layer in range(shape.num_layers)
        )

    @staticmethod
    def bytes_per_token(shape: ModelShape, dtype: torch.dtype = torch.float32) -> int:
        """Memory that one token's keys and values take, over all layers."""
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize

    def slots(self, block_table: tuple[int, ...], begin: int, end: int) -> NDArray[np.int64]:
        """The slots of a sequence's positions from begin to end."""
        blocks = np.asarray(block_table, dtype=np.int64)
        positions = np.arange(begin, end)
        return blocks[positions // self.block_size] * self.block_size + positions % self.block_size

    def give_back(self, blocks: Sequence[int]) -> None:
        """Return the memory of blocks that nobody uses, as far as it is whole pages."""
        block_bytes = self._plane_bytes // self.num_blocks
        for first, last in _runs(blocks):
            for plane in range(self._num_planes):
                begin = plane * self._plane_bytes
                end = begin + (last + 1) * block_bytes
                self._memory.give_back(begin + first * block_bytes, end)

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store [tokens, 2 * kv_heads, head_dim], keys before values, one token a slot."""
        self._layers[layer].index_copy_(1, slots, keys_values.transpose(0, 1))

    def layer(self, layer: int) -> Tensor:
        """A layer's pool, not copied."""
        return self._layers[layer]

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and of the values in the slots, each [kv_heads, slots, head_dim]."""
        both = self._layers[layer].index_select(1, slots)
        return both[: self._num_kv_heads], both[self._num_kv_heads :]


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each stretch of neighbouring blocks."""
    ordered = sorted(blocks)
    first = 0
    for index, block in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != block + 1:
            yield ordered[first], block
            first = index + 1
