"""The keys and values of every running sequence, in one pool of blocks.

The pool is [blocks, layers, 2 * kv_heads, block_size, head_dim]: of each layer, the keys of all
heads, then the values. So a block lies in one place, whose memory is given back at once; a layer's
part of it are some pages that follow each other; and a head's tokens are read in one run. A token's
slot is where the pool, as rows of head_dim, has the keys of its first head in the first layer: all
else of it is at the same distance from there whatever the slot is.
"""

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
        self.num_kv_heads = shape.num_kv_heads
        self._layer_rows = 2 * shape.num_kv_heads * block_size
        self._planes = torch.arange(0, self._layer_rows, block_size)
        """How far from a token's slot each of its heads is, keys before values."""
        self._block_rows = shape.num_layers * self._layer_rows
        self._row_bytes = shape.head_dim * dtype.itemsize
        num_rows = num_blocks * self._block_rows
        self._memory = HostMemory(num_rows * self._row_bytes)
        self.rows = self._memory.tensor(0, dtype, (num_rows, shape.head_dim))
        """The pool: [rows, head_dim]."""

    @staticmethod
    def bytes_per_token(shape: ModelShape, dtype: torch.dtype = torch.float32) -> int:
        """Memory that one token's keys and values take, over all layers."""
        return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize

    def slots(self, block_table: Sequence[int], begin: int, end: int) -> NDArray[np.int64]:
        """The slots of a sequence's positions from begin to end."""
        blocks = np.asarray(block_table, dtype=np.int64) * self._block_rows
        positions = np.arange(begin, end)
        return blocks[positions // self.block_size] + positions % self.block_size

    def give_back(self, blocks: Sequence[int]) -> None:
        """Return the memory of blocks that nobody uses, as far as it is whole pages."""
        block_bytes = self._block_rows * self._row_bytes
        for first, last in _runs(blocks):
            self._memory.give_back(first * block_bytes, (last + 1) * block_bytes)

    def layer(self, layer: int) -> Tensor:
        """The pool, not copied, from where a layer's part of the first block begins."""
        return self.rows[layer * self._layer_rows :]

    def write(self, layer: int, slots: Tensor, keys_values: Tensor) -> None:
        """Store [tokens, 2 * kv_heads, head_dim], keys before values, one token a slot."""
        places = (slots.unsqueeze(1) + self._planes).flatten()
        self.layer(layer).index_copy_(0, places, keys_values.flatten(0, 1))

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the keys and of the values in the slots, each [kv_heads, slots, head_dim]."""
        places = (self._planes.unsqueeze(1) + slots).flatten()
        found = self.layer(layer).index_select(0, places)
        keys, values = found.view(len(self._planes), len(slots), -1).chunk(2)
        return keys, values


def _runs(blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of each stretch of neighbouring blocks."""
    ordered = sorted(blocks)
    first = 0
    for index, block in enumerate(ordered):
        if index + 1 == len(ordered) or ordered[index + 1] != block + 1:
            yield ordered[first], block
            first = index + 1
