"""Runs a step: one forward pass over the new tokens of all its rows, then one draw for each row.

The networks of the supported families differ in what their weights say (biases, norms of queries
and keys, kind of rotary embedding), so one forward pass serves them all.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Drawn, Score, Step, TokenLogprobs
from anole_worker.model_shape import DOWN, GATE_UP, OUTPUT, QKV
from anole_worker.runtime import cpu_kernels
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.attention import attend
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.logprobs import score
from anole_worker.runtime.lora import AdaptedTokens, Deltas, LoopDeltas
from anole_worker.runtime.lora_rows import RowsBackend
from anole_worker.runtime.packed_step import PackedStep, pack
from anole_worker.runtime.projection import elements
from anole_worker.runtime.sampler import sample
from anole_worker.runtime.weights import LayerWeights, ModelWeights

_SCORED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """What every layer of one pass shares."""

    packed: PackedStep
    deltas: Deltas
    cos: Tensor
    """[tokens, 1, head_dim]"""
    sin: Tensor
    """[tokens, 1, head_dim], its first half negated: it meets the halves swapped."""


class ModelRunner:
    """The model with its KV cache; for one thread at a time."""

    def __init__(self, weights: ModelWeights, kv_cache: KvCache, grammars: Grammars) -> None:
        self._weights = weights
        self._kv_cache = kv_cache
        self._grammars = grammars
        self._has_kernels = RowsBackend.knows(weights.dtype)
        self._make_deltas: Callable[[Sequence[AdaptedTokens]], Deltas] = LoopDeltas
        if self._has_kernels:
            self._make_deltas = RowsBackend(weights.shape, weights.dtype).deltas

    @torch.inference_mode()
    def run(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> list[Drawn]:
        """What the step brings to each row.

        `adapters` has every adapter that the step names.
        """
        x = self._states(step, adapters)
        ends = list(itertools.accumulate(len(row.token_ids) for row in step.rows))
        sampled = [index for index, row in enumerate(step.rows) if row.sampling is not None]
        logits = self._head(x[[ends[index] - 1 for index in sampled]])
        drawn = dict(
            zip(
                sampled,
                sample(logits, [step.rows[index] for index in sampled], self._grammars),
                strict=True,
            )
        )
        found = []
        for index, row in enumerate(step.rows):
            one = drawn.get(index, Drawn())
            if row.score is not None:
                begin = ends[index] - len(row.token_ids)
                one = replace(one, scored=self._score(x[begin : ends[index]], row.score))
            found.append(one)
        return found

    @torch.inference_mode()
    def logits(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> Tensor:
        """Run the pass; [rows that sample, vocab] fp32, the logits of each one's last token."""
        ends = itertools.accumulate(len(row.token_ids) for row in step.rows)
        wanted = [end - 1 for end, row in zip(ends, step.rows, strict=True) if row.sampling]
        return self._head(self._states(step, adapters)[wanted])

    def _score(self, x: Tensor, wanted: Score) -> tuple[TokenLogprobs, ...]:
        found: list[TokenLogprobs] = []
        for begin in range(0, len(wanted.token_ids), _SCORED_AT_ONCE):
            token_ids = wanted.token_ids[begin : begin + _SCORED_AT_ONCE]
            logits = self._head(x[begin : begin + len(token_ids)])
            found += score(logits, Score(token_ids=token_ids, num_top=wanted.num_top))
        return tuple(found)

    def _head(self, x: Tensor) -> Tensor:
        weights = self._weights
        if not len(x):
            return torch.empty(0, weights.shape.vocab_size)
        return weights.head(self._norm(x, weights.final_norm))

    def _states(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> Tensor:
        weights = self._weights
        if not step.rows:
            return weights.embedding[:0].float()
        packed = pack(step, self._kv_cache, weights.dtype)
        inputs = self._inputs(packed, adapters)
        x = weights.embedding[packed.token_ids].float()
        for index, layer in enumerate(weights.layers):
            self._attention(x, index, layer, inputs)
            self._mlp(x, index, layer, inputs)
        return x

    def _inputs(self, packed: PackedStep, adapters: Mapping[Adapter, LoadedAdapter]) -> _Inputs:
        cos, sin = self._weights.rotary(self._weights.embedding, packed.positions)
        signs = torch.ones(self._weights.shape.head_dim, dtype=sin.dtype)
        signs[: len(signs) // 2] = -1
        return _Inputs(
            packed=packed,
            deltas=self._make_deltas(
                [
                    AdaptedTokens(
                        begin=segment.begin,
                        end=segment.end,
                        layers=adapters[segment.adapter].layers,
                        table=adapters[segment.adapter].table,
                    )
                    for segment in packed.segments
                ]
            ),
            cos=cos[0].unsqueeze(1),
            sin=(sin[0] * signs).unsqueeze(1),
        )

    def _attention(self, x: Tensor, index: int, layer: LayerWeights, inputs: _Inputs) -> None:
        """Add the attention block's output to x, in place."""
        shape = self._weights.shape
        normed = self._norm(x, layer.attention_norm)
        qkv = layer.qkv(normed)
        inputs.deltas.add(qkv, normed, index, QKV)
        heads = qkv.view(len(x), -1, shape.head_dim)
        self._rotate(heads[:, : -shape.num_kv_heads], layer, inputs)
        queries, keys_values = heads.tensor_split((shape.num_heads,), dim=1)
        attended = attend(queries, keys_values, self._kv_cache, index, inputs.packed)
        output = layer.output(attended)
        inputs.deltas.add(output, attended, index, OUTPUT)
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
        inputs.deltas.add(gate_up, normed, index, GATE_UP)
        gate, up = gate_up.chunk(2, dim=-1)
        activated = functional.silu(gate).mul_(up)
        output = layer.down(activated)
        inputs.deltas.add(output, activated, index, DOWN)
        x.add_(output)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self._has_kernels:
            normed = functional.rms_norm(x, weight.shape, weight.float(), self._weights.norm_eps)
            return normed.to(weight.dtype)
        normed = torch.empty_like(x, dtype=weight.dtype)
        cpu_kernels.normalise(
            elements(normed), elements(x), elements(weight), self._weights.norm_eps
        )
        return normed
