"""Random batches of adapted tokens: the plain reference, and each implementation run on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime.lora import AdaptedTokens, Deltas, LayerDelta, SiteDelta, SitePart

torch.set_num_threads(1)

MAX_MODULES = max(len(modules) for modules in SITES)

NUM_LAYERS = 2
LAYER = 1


def model_shape(*, hidden_size: int, head_dim: int, intermediate_size: int) -> ModelShape:
    return ModelShape(
        family="llama",
        num_layers=NUM_LAYERS,
        hidden_size=hidden_size,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=8,
        max_model_len=8,
        eos_token_ids=(2,),
    )


ALIGNED = model_shape(hidden_size=80, head_dim=8, intermediate_size=112)
WHOLE = model_shape(hidden_size=96, head_dim=32, intermediate_size=160)
"""Its sizes are multiples of 32: many tokens are multiplied together in bfloat16."""
UNALIGNED = model_shape(hidden_size=50, head_dim=9, intermediate_size=75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of one adapter, and the ranks of the site's modules that it changes."""

    num_tokens: int
    ranks: tuple[tuple[str, int], ...]
    scales: tuple[float, ...] = (1.0,) * MAX_MODULES
    """Kept apart, by module of the site."""
    stored: torch.dtype | None = None
    """Of the adapter's numbers; None: the batch's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    shape: ModelShape
    dtype: torch.dtype
    site: int
    num_base: int
    """Tokens of the base model, before all others."""
    segments: tuple[Segment, ...]
    seed: int

    @property
    def num_tokens(self) -> int:
        return self.num_base + sum(segment.num_tokens for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A case's numbers."""

    x: Tensor
    y: Tensor
    factors: tuple[dict[str, tuple[Tensor, Tensor]], ...]
    """By segment and module: A [rank, in] and B [rank, out]."""


def make_batch(case: Case) -> Batch:
    """Numbers of about 1 everywhere, whatever the sizes, so that errors compare."""
    generator = torch.Generator().manual_seed(case.seed)
    dims = case.shape.module_dims

    def random(*size: int, scale: float = 1, dtype: torch.dtype | None = None) -> Tensor:
        return (torch.randn(size, generator=generator) * scale).to(dtype or case.dtype)

    num_in = dims[SITES[case.site][0]][0]
    return Batch(
        x=random(case.num_tokens, num_in),
        y=random(case.num_tokens, sum(dims[module][1] for module in SITES[case.site])),
        factors=tuple(
            {
                module: (
                    random(rank, num_in, scale=num_in**-0.5, dtype=segment.stored),
                    random(rank, dims[module][1], scale=rank**-0.5, dtype=segment.stored),
                )
                for module, rank in segment.ranks
            }
            for segment in case.segments
        ),
    )


def reference(case: Case) -> Tensor:
    """What y must become: in float64, module by module, nothing fused."""
    batch = make_batch(case)
    x, y = batch.x.double(), batch.y.double()
    begin = case.num_base
    for segment, factors in zip(case.segments, batch.factors, strict=True):
        rows = slice(begin, begin + segment.num_tokens)
        scales = scales_of(case, segment)
        for module, (a, b) in factors.items():
            delta = x[rows] @ a.double().T @ b.double() * scales[module]
            y[rows, case.shape.columns(module)] += delta
        begin = rows.stop
    return y


def scales_of(case: Case, segment: Segment) -> dict[str, float]:
    """By module."""
    return dict(zip(SITES[case.site], segment.scales, strict=False))


def layers_of(case: Case, batch: Batch, device: torch.device) -> list[tuple[LayerDelta, ...]]:
    """By segment: what its adapter adds; only LAYER's site is changed."""
    result = []
    for segment, factors in zip(case.segments, batch.factors, strict=True):
        sites: list[SiteDelta | None] = [None] * len(SITES)
        if factors:
            sites[case.site] = _site_delta(case, segment, factors, device)
        layers: list[LayerDelta] = [(None,) * len(SITES)] * NUM_LAYERS
        layers[LAYER] = tuple(sites)
        result.append(tuple(layers))
    return result


def adapted_tokens(
    case: Case, layers: Sequence[tuple[LayerDelta, ...]], tables: Sequence[Tensor | None]
) -> list[AdaptedTokens]:
    begin, result = case.num_base, []
    for segment, own, table in zip(case.segments, layers, tables, strict=True):
        end = begin + segment.num_tokens
        result.append(AdaptedTokens(begin=begin, end=end, layers=own, table=table))
        begin = end
    return result


def added(case: Case, batch: Batch, deltas: Deltas, device: torch.device) -> Tensor:
    """y after it, and after a layer that changes nothing; float64, on the CPU.

    x and y lie within larger matrices, of which nothing else must change the result or be changed.
    """
    # x's are not NaN: oneDNN reads beyond a bf16 row, to multiply what is there by zero.
    x, y = _framed(batch.x, 1000, device), _framed(batch.y, float("nan"), device)
    rows, columns = batch.y.shape
    for layer in range(NUM_LAYERS):
        deltas.add(y[:rows, :columns], x[:rows, : batch.x.shape[1]], layer, case.site)
    assert y[rows:].isnan().all()
    assert y[:, columns:].isnan().all()
    return y[:rows, :columns].cpu().double()


def _framed(matrix: Tensor, value: float, device: torch.device) -> Tensor:
    framed = matrix.new_full((len(matrix) + 2, matrix.shape[1] + 16), value, device=device)
    framed[: len(matrix), : matrix.shape[1]] = matrix
    return framed


def _site_delta(
    case: Case, segment: Segment, factors: dict[str, tuple[Tensor, Tensor]], device: torch.device
) -> SiteDelta:
    parts, rank, scales = [], 0, scales_of(case, segment)
    for module, (_, b) in factors.items():
        ranks = slice(rank, rank + len(b))
        parts.append(
            SitePart(
                columns=case.shape.columns(module),
                ranks=ranks,
                up=b.to(device),
                scale=scales[module],
            )
        )
        rank = ranks.stop
    down = torch.cat([a for a, _ in factors.values()]).to(device)
    return SiteDelta(down=down.t(), parts=tuple(parts))
