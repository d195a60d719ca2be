"""Runs a step: one forward pass over the new tokens of all its rows, then one draw for each row.

The networks of the supported families differ in what their weights say (biases, norms of queries
and keys, kind of rotary embedding), so one forward pass serves them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anole_shared.ids import AdapterId
from anole_worker.core.step import Step
from anole_worker.model_shape import DOWN, GATE_UP, OUTPUT, QKV
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.attention import attend
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.lora import AdaptedTokens, add_deltas
from anole_worker.runtime.packed_step import PackedStep, pack
from anole_worker.runtime.sampler import sample
from anole_worker.runtime.weights import LayerWeights, ModelWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """What every layer of one pass shares."""

    packed: PackedStep
    adapted: tuple[AdaptedTokens, ...]
    cos: Tensor
    """[tokens, 1, head_dim]"""
    sin: Tensor
    """[tokens, 1, head_dim], its first half negated: it meets the halves swapped."""


class ModelRunner:
    """The model with its KV cache; for one thread at a time."""

    def __init__(self, weights: ModelWeights, kv_cache: KvCache) -> None:
        self._weights = weights
        self._kv_cache = kv_cache

    @torch.inference_mode()
    def run(self, step: Step, adapters: Mapping[AdapterId, LoadedAdapter]) -> list[int | None]:
        """The token drawn for each row; None for a row that does not sample.

        `adapters` has every adapter that the step names.
        """
        sampling_rows = [row for row in step.rows if row.sampling is not None]
        logits = self.logits(step, adapters)
        drawn = iter(
            sample(
                logits,
                [row.sampling for row in sampling_rows if row.sampling is not None],
                [row.start + len(row.token_ids) for row in sampling_rows],
            )
        )
        return [None if row.sampling is None else next(drawn) for row in step.rows]

    @torch.inference_mode()
    def logits(self, step: Step, adapters: Mapping[AdapterId, LoadedAdapter]) -> Tensor:
        """Run the pass; [rows that sample, vocab] fp32, the logits of each one's last token."""
        weights = self._weights
        if not step.rows:
            return torch.empty(0, weights.shape.vocab_size)
        packed = pack(step, self._kv_cache, weights.dtype)
        inputs = self._inputs(packed, adapters)
        x = weights.embedding[packed.token_ids]
        for index, layer in enumerate(weights.layers):
            self._attention(x, index, layer, inputs)
            self._mlp(x, index, layer, inputs)
        last = x.index_select(0, packed.sampled)
        if not len(last):
            return torch.empty(0, weights.shape.vocab_size)
        return weights.head(self._norm(last, weights.final_norm)).float()

    def _inputs(self, packed: PackedStep, adapters: Mapping[AdapterId, LoadedAdapter]) -> _Inputs:
        cos, sin = self._weights.rotary(self._weights.embedding, packed.positions)
        signs = torch.ones(self._weights.shape.head_dim, dtype=sin.dtype)
        signs[: len(signs) // 2] = -1
        return _Inputs(
            packed=packed,
            adapted=tuple(
                AdaptedTokens(
                    begin=segment.begin,
                    end=segment.end,
                    layers=adapters[segment.adapter_id].layers,
                )
                for segment in packed.segments
            ),
            cos=cos[0].unsqueeze(1),
            sin=(sin[0] * signs).unsqueeze(1),
        )

    def _attention(self, x: Tensor, index: int, layer: LayerWeights, inputs: _Inputs) -> None:
        """Add the attention block's output to x, in place."""
        shape = self._weights.shape
        normed = self._norm(x, layer.attention_norm)
        qkv = layer.qkv(normed)
        add_deltas(qkv, normed, inputs.adapted, index, QKV)
        heads = qkv.view(len(x), -1, shape.head_dim)
        self._rotate(heads[:, : -shape.num_kv_heads], layer, inputs)
        queries, keys_values = heads.tensor_split((shape.num_heads,), dim=1)
        attended = attend(queries, keys_values, self._kv_cache, index, inputs.packed)
        output = layer.output(attended)
        add_deltas(output, attended, inputs.adapted, index, OUTPUT)
        x.add_(output)

    def _rotate(self, heads: Tensor, layer: LayerWeights, inputs: _Inputs) -> None:
        """Apply norms, where there are any, and positions to queries and keys, in place."""
        normed = heads
        if layer.qk_norm is not None:
            normed = functional.rms_norm(heads, heads.shape[-1:], None, self._weights.norm_eps)
            normed = normed * layer.qk_norm
        swapped = normed.roll(heads.shape[-1] // 2, dims=-1)
        torch.addcmul(normed * inputs.cos, swapped, inputs.sin, out=heads)

    def _mlp(self, x: Tensor, index: int, layer: LayerWeights, inputs: _Inputs) -> None:
        """Add the MLP block's output to x, in place."""
        normed = self._norm(x, layer.mlp_norm)
        gate_up = layer.gate_up(normed)
        add_deltas(gate_up, normed, inputs.adapted, index, GATE_UP)
        gate, up = gate_up.chunk(2, dim=-1)
        activated = functional.silu(gate).mul_(up)
        output = layer.down(activated)
        add_deltas(output, activated, inputs.adapted, index, DOWN)
        x.add_(output)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._weights.norm_eps)
