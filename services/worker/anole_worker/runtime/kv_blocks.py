"""Keys and values on a GPU: every block has memory of its own, found by its address.

A block is [layers, 2 * kv_heads, block_size, head_dim], keys of all heads before the values. It
takes memory when it is first used and gives it back by itself, so blocks and adapters really share
one device's memory: both come from torch's allocator. Kernels are given addresses, as they are of
adapters (ADR 10): a recorded step stays valid whatever comes and goes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_shared.errors import ConfigurationError
from anole_worker.model_shape import ModelShape

Addresses = NDArray[np.int64]

_ALIGNMENT = 16
"""Bytes that a GPU moves at a time."""

_MOST_ASIDE = 64
"""So many blocks that lie too high are looked at before there is nothing below."""


class KvBlocks:
    """The blocks that have memory; which block belongs to whom is the caller's to know."""

    def __init__(
        self, shape: ModelShape, block_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Takes memory for one block, the scratch.

        Raises:
            ConfigurationError: heads are of a size that kernels cannot read by 16 bytes.
        """
        self.shape = shape
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        if self.row_bytes % _ALIGNMENT:
            raise ConfigurationError(
                f"this model's heads take {self.row_bytes} bytes a token, which is no multiple of "
                f"{_ALIGNMENT}: run it with ANOLE_WORKER_DEVICE=cpu"
            )
        self._size = (shape.num_layers, 2 * shape.num_kv_heads, block_size, shape.head_dim)
        self._blocks: dict[int, Tensor] = {}
        self._addresses = np.zeros(0, dtype=np.int64)  # by block; 0 where it has no memory
        self._scratch = torch.zeros(self._size, dtype=dtype, device=device)

    @property
    def scratch(self) -> int:
        """The address of a block that nobody's tokens are in: for rows that only fill up a step."""
        return self._scratch.data_ptr()

    @property
    def num_with_memory(self) -> int:
        """Blocks that take memory, without the scratch."""
        return len(self._blocks)

    @property
    def row_bytes(self) -> int:
        """From one token's key of a head to the next token's."""
        return self.shape.head_dim * self.dtype.itemsize

    def addresses(self, blocks: Sequence[int]) -> Addresses:
        """Where these blocks are.

        Raises:
            torch.OutOfMemoryError: one takes memory only now, and the device has none.
        """
        numbers = np.asarray(blocks, dtype=np.int64)
        missing = int(numbers.max(initial=-1)) + 1 - len(self._addresses)
        if missing > 0:
            self._addresses = np.pad(self._addresses, (0, missing))
        found = self._addresses[numbers]
        if not found.all():
            for block in dict.fromkeys(numbers[found == 0].tolist()):
                self._keep(block, self._new())
            found = self._addresses[numbers]
        return found

    def _new(self) -> Tensor:
        return torch.empty(self._size, dtype=self.dtype, device=self.device)

    def _keep(self, block: int, memory: Tensor) -> None:
        self._blocks[block] = memory
        self._addresses[block] = memory.data_ptr()

    @torch.inference_mode()
    def compact(self) -> int:
        """Move blocks from the highest addresses to free ones below; how many. Between two steps.

        What is free lies side by side then. An adapter needs it so, and torch gives the system
        whole pages only, of 20 MiB where something takes more than one.
        """
        num_moved, aside = 0, list[Tensor]()
        highest = sorted(self._blocks, key=lambda block: -int(self._addresses[block]))
        for block in highest:
            memory = self._below(int(self._addresses[block]), aside)
            if memory is None:
                break
            self._keep(block, memory.copy_(self._blocks[block]))
            num_moved += 1
        return num_moved

    def _below(self, address: int, aside: list[Tensor]) -> Tensor | None:
        """Memory for a block below the address; what torch has in another place is put aside."""
        while len(aside) <= _MOST_ASIDE:
            try:
                memory = self._new()
            except torch.OutOfMemoryError:
                return None
            if memory.data_ptr() < address:
                return memory
            aside.append(memory)
        return None

    def places(self, addresses: Addresses, begin: int, end: int) -> Addresses:
        """Where the first layer's first key of each position of a sequence goes, given its blocks.

        The places of its other layers and heads lie at fixed distances from there.
        """
        positions = np.arange(begin, end)
        rows = positions % self.block_size
        return addresses[positions // self.block_size] + rows * self.row_bytes

    def give_back(self, blocks: Iterable[int]) -> None:
        """Return the memory of blocks that nobody uses; no step may be running."""
        for block in blocks:
            if self._blocks.pop(block, None) is not None:
                self._addresses[block] = 0
