"""Adds adapters to the base model's projections, each to its own rows of a mixed batch.

Deltas is what every forward pass calls. The implementation here runs anywhere torch does: a plain
loop over the adapters of the step. Rows of one adapter are
contiguous, so that nothing is gathered or scattered, ranks may differ, and one token a row or a
long prompt are alike. On a CPU this beats padding to the largest rank and batching (1.3 against
1.7 to 2.9 times a step of the base model, 16 adapters of ranks 8 to 64), because the weights'
bytes are what costs. lora_rows has compiled loops for a CPU, lora_triton kernels for a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePart:
    """One module's B within a fused projection."""

    columns: slice
    """Of the projection's output."""
    ranks: slice
    """Of the site's stacked ranks."""
    up: Tensor
    """[rank, out]."""
    scale: float = 1.0
    """What the product is multiplied with; 1 where it is multiplied into `up`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDelta:
    """What an adapter adds to one fused projection of one layer.

    Its numbers are of one type: the base model's, or one of 16 bits where that is float32.
    """

    down: Tensor
    """[in, sum of ranks]: the As of the site's modules beside each other."""
    parts: tuple[SitePart, ...]


LayerDelta = tuple[SiteDelta | None, ...]
"""By SITES; None where the adapter leaves the projection alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptedTokens:
    """Consecutive tokens of a step, and the adapter that they run with."""

    begin: int
    end: int
    layers: tuple[LayerDelta, ...]
    table: Tensor | None = None
    """Where the adapter's tensors are, for kernels (see lora_table)."""


class Deltas(Protocol):
    """What the adapters of one step add; made once for the step, then used by every layer."""

    def add(self, y: Tensor, x: Tensor, layer: int, site: int) -> None:
        """Add to y [tokens, out], in place, what the adapters make of x [tokens, in]."""


class LoopDeltas:
    """One adapter after the other, with torch's own matrix products."""

    __slots__ = ("_adapted",)

    def __init__(self, adapted: Sequence[AdaptedTokens]) -> None:
        self._adapted = adapted

    def add(self, y: Tensor, x: Tensor, layer: int, site: int) -> None:
        for tokens in self._adapted:
            delta = tokens.layers[layer][site]
            if delta is None:
                continue
            rows = slice(tokens.begin, tokens.end)
            hidden = torch.mm(x[rows], delta.down.to(x.dtype))
            for part in delta.parts:
                own, up = hidden[:, part.ranks], part.up.to(x.dtype)
                y[rows, part.columns].addmm_(own, up, alpha=part.scale)
