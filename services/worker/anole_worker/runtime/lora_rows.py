"""Adds adapters to projections on a CPU: few tokens by a compiled loop, many by torch.

In decoding every adapter has a row or two. torch's products then cost tens of microseconds a call,
of which one step of 16 adapters makes 3,000; one call of the loop reads all adapters' weights of a
projection at the speed of memory. Long chunks are left to torch, whose products reuse them.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime import cpu_kernels
from anole_worker.runtime.lora import AdaptedTokens, LoopDeltas
from anole_worker.runtime.lora_table import MAX_MODULES, RECORD
from anole_worker.runtime.projection import elements

MAX_RANK = 256

Room = NDArray[np.float32]

_MOST_TOKENS = {torch.float32: 8, torch.bfloat16: 16}
"""Of one adapter in a step that the loop takes; and the types that it knows."""


class RowsBackend:
    """What all steps on one CPU share: the model's sizes."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype) -> None:
        dims = shape.module_dims
        self._most = _MOST_TOKENS[dtype]
        self._columns = [
            np.array([shape.columns(module).start for module in modules]) for modules in SITES
        ]
        self._sizes = [np.array([dims[module][1] for module in modules]) for modules in SITES]
        longest = max(max(sizes) for sizes in dims.values())
        self._room_size = longest + MAX_MODULES * MAX_RANK

    @staticmethod
    def knows(dtype: torch.dtype) -> bool:
        """Whether there is a loop for the type."""
        return dtype in _MOST_TOKENS

    def deltas(self, adapted: Sequence[AdaptedTokens]) -> "RowsDeltas":
        """Of one step; every adapter has its table."""
        few = [tokens for tokens in adapted if tokens.end - tokens.begin <= self._most]
        many = [tokens for tokens in adapted if tokens.end - tokens.begin > self._most]
        room = np.empty(self._room_size, dtype=np.float32)
        return RowsDeltas(self, _tiles(few), LoopDeltas(many), room)

    def add(
        self, y: Tensor, x: Tensor, tiles: NDArray[np.int64], place: tuple[int, int], room: Room
    ) -> None:
        """Add what the tiles' adapters make of x at a layer's site."""
        layer, site = place
        cpu_kernels.add_deltas(
            elements(y),
            elements(x),
            tiles,
            (layer * len(SITES) + site) * RECORD,
            self._columns[site],
            self._sizes[site],
            room,
        )


class RowsDeltas:
    """The Deltas of one step."""

    __slots__ = ("_backend", "_many", "_room", "_tiles")

    def __init__(
        self, backend: RowsBackend, tiles: NDArray[np.int64], many: LoopDeltas, room: Room
    ) -> None:
        """room: to work in, for one thread."""
        self._backend = backend
        self._room = room
        self._tiles = tiles
        self._many = many

    def add(self, y: Tensor, x: Tensor, layer: int, site: int) -> None:
        if len(self._tiles):
            self._backend.add(y, x, self._tiles, (layer, site), self._room)
        self._many.add(y, x, layer, site)


def _tiles(few: Iterable[AdaptedTokens]) -> NDArray[np.int64]:
    """The address of each adapter's table, its first token and how many it has."""
    tiles = []
    for tokens in few:
        assert tokens.table is not None, "the adapter has no table"
        tiles.append((tokens.table.data_ptr(), tokens.begin, tokens.end - tokens.begin))
    return np.array(tiles, dtype=np.int64).reshape(-1, 3)
