"""Adds adapters to projections on a CPU by compiled loops, or many tokens of one by torch.

In decoding every adapter has a row or two. torch's products then cost tens of microseconds a call,
of which one step of 16 adapters makes 3,000; one call of the loop reads all adapters' weights of a
projection at the speed of memory. For long chunks torch reuses them, and is good at that where it
multiplies the base model's as well.
"""

import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime import cpu_deltas
from anole_worker.runtime.lora import AdaptedTokens, LoopDeltas
from anole_worker.runtime.lora_table import MAX_MODULES, RECORD
from anole_worker.runtime.projection import elements, has_loops

MAX_RANK = 256

Room = NDArray[np.float32]

_MOST_TOKENS = {torch.float32: 8, torch.bfloat16: 16}
"""Of one adapter in a step that loops take and not torch; and the types that they know."""


class RowsBackend:
    """What all steps on one CPU share: the model's sizes."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype) -> None:
        dims = shape.module_dims
        self._most = sys.maxsize if has_loops(dtype) else _MOST_TOKENS[dtype]
        is_narrow = dtype == torch.bfloat16
        self._add = cpu_deltas.add_narrow_deltas if is_narrow else cpu_deltas.add_deltas
        self.columns = _by_site(lambda module: shape.columns(module).start)
        """int64 [SITES, modules]: where each module's columns of its site's output begin."""
        self.sizes = _by_site(lambda module: dims[module][1])
        """int64 [SITES, modules]: how many they are; 0 where a site has fewer modules."""
        longest = max(max(sizes) for sizes in dims.values())
        self._room_size = longest + MAX_MODULES * MAX_RANK

    @staticmethod
    def knows(dtype: torch.dtype) -> bool:
        """Whether there is a loop for the type."""
        return dtype in _MOST_TOKENS

    def deltas(self, adapted: Sequence[AdaptedTokens]) -> "RowsDeltas":
        """Of one step; every adapter has its table."""
        room = np.empty(self._room_size, dtype=np.float32)
        return RowsDeltas(self, adapted, self._most, room)

    def add(
        self, y: Tensor, x: Tensor, tiles: NDArray[np.int64], place: tuple[int, int], room: Room
    ) -> None:
        """Add what the tiles' adapters make of x at a layer's site."""
        layer, site = place
        self._add(
            elements(y),
            elements(x),
            tiles,
            (layer * len(SITES) + site) * RECORD,
            self.columns[site],
            self.sizes[site],
            room,
        )


class RowsDeltas:
    """The Deltas of one step."""

    __slots__ = ("_backend", "_many", "room", "tiles")

    def __init__(
        self, backend: RowsBackend, adapted: Sequence[AdaptedTokens], most: int, room: Room
    ) -> None:
        """most: tokens of one adapter that the loop takes; room: to work in, for one thread."""
        self._backend = backend
        self._many = LoopDeltas([own for own in adapted if own.end - own.begin > most])
        self.tiles = _tiles(tokens for tokens in adapted if tokens.end - tokens.begin <= most)
        """As the loop takes them."""
        self.room = room

    def add(self, y: Tensor, x: Tensor, layer: int, site: int) -> None:
        if len(self.tiles):
            self._backend.add(y, x, self.tiles, (layer, site), self.room)
        self._many.add(y, x, layer, site)


def _by_site(number: Callable[[str], int]) -> NDArray[np.int64]:
    found = np.zeros((len(SITES), MAX_MODULES), dtype=np.int64)
    for site, modules in enumerate(SITES):
        found[site, : len(modules)] = [number(module) for module in modules]
    return found


def _tiles(few: Iterable[AdaptedTokens]) -> NDArray[np.int64]:
    """The address of each adapter's table, its first token and how many it has."""
    tiles = []
    for tokens in few:
        assert tokens.table is not None, "the adapter has no table"
        tiles.append((tokens.table.data_ptr(), tokens.begin, tokens.end - tokens.begin))
    return np.array(tiles, dtype=np.int64).reshape(-1, 3)
