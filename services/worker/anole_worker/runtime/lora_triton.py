"""Adds adapters to projections on a GPU: two kernels a projection, whatever the step mixes.

Only a worker with a GPU imports this, and Triton with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from anole_worker.adapter_config import MAX_RANK
from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime.lora import AdaptedTokens
from anole_worker.runtime.lora_expand import expand
from anole_worker.runtime.lora_shrink import shrink
from anole_worker.runtime.lora_table import MAX_MODULES, RECORD, is_aligned

_TILE_FIELDS = 3
_FEW_TOKENS, _MANY_TOKENS = 16, 64
"""A tile's most tokens: in decoding, and where there are prompts. What tensor cores take."""
_MAX_SPLITS = {_FEW_TOKENS: 8, _MANY_TOKENS: 4}
_RANK_SHARES = {_FEW_TOKENS: 4, _MANY_TOKENS: 1}
_PROGRAMS = 512
"""What keeps a GPU of Hopper's kind busy: 132 multiprocessors, four programs on each."""
_MIN_HIDDEN_ROWS = 2048
"""So that 256 sequences that decode can be split as far as a step's programs ask."""
_LAUNCH = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How much a program takes at a time; powers of two."""

    inputs: int = 256
    """Of a single token; splits are multiples of it."""
    dot_inputs: int = 64
    """Of several tokens; divides `inputs`."""
    outputs: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """What a step's tokens decide about its launches; a recorded launch keeps it."""

    num_tokens: int
    num_tiles: int
    tile_tokens: int

    def num_splits(self, num_blocks: int, num_rows: int) -> int:
        """Among how many programs the blocks of a projection's inputs are split.

        Always a power of two, so that there are few kernels to compile. num_rows: room for the
        partial sums of so many tokens.
        """
        programs = max(1, self.num_tiles) * _RANK_SHARES[self.tile_tokens]
        most = min(
            _PROGRAMS // programs,
            num_blocks,
            num_rows // max(1, self.num_tokens),
            _MAX_SPLITS[self.tile_tokens],
        )
        return 1 << (max(1, most).bit_length() - 1)


class TritonBackend:
    """What all steps on one GPU share: the model's sizes, and the room between the two kernels."""

    def __init__(
        self,
        shape: ModelShape,
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_tokens: int,
        blocks: Blocks | None = None,
    ) -> None:
        """Takes 3 KB of the GPU's memory for each of max_tokens, the most that one step runs.

        dtype: of the activations and of every adapter. Steps must run one after the other.
        """
        dims = shape.module_dims
        self.dtype = dtype
        self.device = device
        self.blocks = blocks or Blocks()
        self.num_in = tuple(dims[modules[0]][0] for modules in SITES)
        self.num_out = tuple(
            tuple(dims[module][1] for module in modules) + (0,) * (MAX_MODULES - len(modules))
            for modules in SITES
        )
        self.is_aligned = is_aligned(shape)
        self.widens = dtype == torch.bfloat16 and triton.knobs.runtime.interpret
        self.hidden = torch.empty(
            (max(max_tokens, _MIN_HIDDEN_ROWS), MAX_MODULES * MAX_RANK),
            dtype=torch.float32,
            device=device,
        )

    def deltas(self, adapted: Sequence[AdaptedTokens]) -> "TritonDeltas":
        """Of one step."""
        longest = max((tokens.end - tokens.begin for tokens in adapted), default=0)
        tile_tokens = _FEW_TOKENS if longest <= _FEW_TOKENS else _MANY_TOKENS
        tiling = Tiling(
            num_tokens=max((tokens.end for tokens in adapted), default=0),
            num_tiles=len(list(_tiles(adapted, tile_tokens))),
            tile_tokens=tile_tokens,
        )
        deltas = TritonDeltas(self, tiling)
        deltas.set(adapted)
        return deltas

    def recordable(self, num_tokens: int) -> "TritonDeltas":
        """For a CUDA graph of a step with at most so many tokens; nothing is added until `set`."""
        tiling = Tiling(num_tokens=num_tokens, num_tiles=num_tokens, tile_tokens=_FEW_TOKENS)
        return TritonDeltas(self, tiling)


class TritonDeltas:
    """The Deltas of a step; or, recorded in a CUDA graph, of every step that replays it."""

    def __init__(self, backend: TritonBackend, tiling: Tiling) -> None:
        self._backend = backend
        self._tiling = tiling
        size = (tiling.num_tiles, _TILE_FIELDS)
        self._tiles = torch.zeros(size, dtype=torch.int64, device=backend.device)

    def set(self, adapted: Sequence[AdaptedTokens]) -> None:
        """Say what to add, in the order of the stream: before the add, or the replay, after it.

        The adapters must stay where they are until that has run.
        """
        tiles = list(_tiles(adapted, self._tiling.tile_tokens))
        host = np.zeros((self._tiling.num_tiles, _TILE_FIELDS), dtype=np.int64)
        host[: len(tiles)] = np.array(tiles, dtype=np.int64).reshape(-1, _TILE_FIELDS)
        source = torch.from_numpy(host)
        if self._tiles.is_cuda:
            source = source.pin_memory()
        self._tiles.copy_(source, non_blocking=True)

    def add(self, y: Tensor, x: Tensor, layer: int, site: int) -> None:
        if not self._tiling.num_tiles:
            return
        backend, tiling = self._backend, self._tiling
        blocks, hidden = backend.blocks, backend.hidden
        num_in, num_out = backend.num_in[site], backend.num_out[site]
        num_blocks = triton.cdiv(num_in, blocks.inputs)
        num_splits = tiling.num_splits(num_blocks, len(hidden))
        place = (layer * len(SITES) + site) * RECORD
        split_stride = tiling.num_tokens * hidden.stride(0)
        shrink[tiling.num_tiles, _RANK_SHARES[tiling.tile_tokens], num_splits](
            x=x,
            hidden=hidden,
            tiles=self._tiles,
            place=place,
            num_in=num_in,
            x_stride=x.stride(0),
            hidden_stride=hidden.stride(0),
            split_stride=split_stride,
            blocks_per_split=triton.cdiv(num_blocks, num_splits),
            tile_tokens=tiling.tile_tokens,
            block_in=blocks.inputs,
            dot_in=blocks.dot_inputs,
            is_aligned=backend.is_aligned,
            widen=backend.widens,
            **_LAUNCH,
        )
        out_blocks = sum(triton.cdiv(size, blocks.outputs) for size in num_out)
        expand[tiling.num_tiles, out_blocks](
            y=y,
            hidden=hidden,
            tiles=self._tiles,
            place=place,
            out_0=num_out[0],
            out_1=num_out[1],
            out_2=num_out[2],
            y_stride=y.stride(0),
            hidden_stride=hidden.stride(0),
            split_stride=split_stride,
            tile_tokens=tiling.tile_tokens,
            block_out=blocks.outputs,
            num_splits=num_splits,
            is_aligned=backend.is_aligned,
            widen=backend.widens,
            **_LAUNCH,
        )


def _tiles(adapted: Sequence[AdaptedTokens], tile_tokens: int) -> Iterator[tuple[int, int, int]]:
    """The address of the adapter's table, first token and number of tokens of each tile."""
    for tokens in adapted:
        assert tokens.table is not None
        for begin in range(tokens.begin, tokens.end, tile_tokens):
            yield tokens.table.data_ptr(), begin, min(tile_tokens, tokens.end - begin)
