"""The network itself: from a batch's tokens to the final states, and from those to logits.

The supported families differ in what their weights say (biases, norms of queries and keys, kind of
rotary embedding), so one forward pass serves them all. It runs on whatever device the weights are
on, and queues work there without waiting for any of it: a CUDA graph can record it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anole_worker.model_shape import DOWN, GATE_UP, OUTPUT, QKV
from anole_worker.runtime import cpu_kernels
from anole_worker.runtime.lora import Deltas
from anole_worker.runtime.lora_rows import RowsBackend
from anole_worker.runtime.projection import elements
from anole_worker.runtime.weights import LayerWeights, ModelWeights

Attend = Callable[[Tensor, Tensor, int], Tensor]
"""(queries [tokens, heads, head_dim], keys before values [tokens, 2 * kv_heads, head_dim], layer):
stores the new keys and values, and gives [tokens, heads * head_dim]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one pass runs; all rows' new tokens stand one after the other."""

    token_ids: Tensor
    """[tokens]"""
    positions: Tensor
    """[1, tokens]"""
    sampled: Tensor
    """[rows that sample]: the last token of each."""
    attend: Attend
    deltas: Deltas
    layers: Callable[[Tensor, Tensor, Tensor], None] | None = None
    """(states, cos, sin): takes the states through all layers, where one call can."""
    give_up: Callable[[], None] = lambda: None
    """To be called when its pass fails, so that batches that run beside it do not wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """What every layer of one pass shares."""

    attend: Attend
    deltas: Deltas
    cos: Tensor
    """[tokens, 1, head_dim]"""
    sin: Tensor
    """[tokens, 1, head_dim], its first half negated: it meets the halves swapped."""


class Network:
    """The model without a memory of its own: keys and values are the batch's to keep."""

    def __init__(self, weights: ModelWeights) -> None:
        self.weights = weights
        device = weights.embedding.device
        self._has_kernels = device.type == "cpu" and RowsBackend.knows(weights.dtype)
        half = weights.shape.head_dim // 2
        signs = torch.ones(weights.shape.head_dim, dtype=weights.dtype)
        signs[:half] = -1
        self._signs = signs.to(device)

    def states(self, batch: Batch) -> Tensor:
        """The state of each token behind the last layer: [tokens, hidden] float32."""
        try:
            return self._states(batch)
        except BaseException:
            batch.give_up()
            raise

    def _states(self, batch: Batch) -> Tensor:
        inputs = self._inputs(batch)
        x = self.weights.embedding[batch.token_ids].float()
        if batch.layers is not None:
            batch.layers(x, inputs.cos, inputs.sin)
            return x
        for index, layer in enumerate(self.weights.layers):
            self._attention(x, index, layer, inputs)
            self._mlp(x, index, layer, inputs)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Logits [rows, vocab] float32 out of states."""
        if not len(x):
            return x.new_empty(0, self.weights.shape.vocab_size)
        return self.weights.head(self._norm(x, self.weights.final_norm))

    def _inputs(self, batch: Batch) -> _Inputs:
        cos, sin = self.weights.rotary(self.weights.embedding, batch.positions)
        return _Inputs(
            attend=batch.attend,
            deltas=batch.deltas,
            cos=cos[0].unsqueeze(1),
            sin=(sin[0] * self._signs).unsqueeze(1),
        )

    def _attention(self, x: Tensor, index: int, layer: LayerWeights, inputs: _Inputs) -> None:
        """Add the attention block's output to x, in place."""
        shape = self.weights.shape
        normed = self._norm(x, layer.attention_norm)
        qkv = layer.qkv(normed)
        inputs.deltas.add(qkv, normed, index, QKV)
        heads = qkv.view(len(x), -1, shape.head_dim)
        self._rotate(heads, shape.num_heads + shape.num_kv_heads, layer, inputs)
        queries, keys_values = heads.tensor_split((shape.num_heads,), dim=1)
        attended = inputs.attend(queries, keys_values, index)
        output = layer.output(attended)
        inputs.deltas.add(output, attended, index, OUTPUT)
        x.add_(output)

    def _rotate(self, heads: Tensor, count: int, layer: LayerWeights, inputs: _Inputs) -> None:
        """Apply norms, where there are any, and positions to the first heads, in place."""
        if self._has_kernels:
            norm = heads.new_empty(0, 0) if layer.qk_norm is None else layer.qk_norm
            cos, sin = elements(inputs.cos[:, 0]), elements(inputs.sin[:, 0])
            epsilon = self.weights.norm_eps
            cpu_kernels.rotate(elements(heads), count, elements(norm), cos, sin, epsilon)
            return
        normed = heads = heads[:, :count]
        if layer.qk_norm is not None:
            normed = functional.rms_norm(heads, heads.shape[-1:], None, self.weights.norm_eps)
            normed = normed * layer.qk_norm
        swapped = normed.roll(heads.shape[-1] // 2, dims=-1)
        torch.addcmul(normed * inputs.cos, swapped, inputs.sin, out=heads)

    def _mlp(self, x: Tensor, index: int, layer: LayerWeights, inputs: _Inputs) -> None:
        """Add the MLP block's output to x, in place."""
        normed = self._norm(x, layer.mlp_norm)
        gate_up = layer.gate_up(normed)
        inputs.deltas.add(gate_up, normed, index, GATE_UP)
        activated = self._activate(gate_up)
        output = layer.down(activated)
        inputs.deltas.add(output, activated, index, DOWN)
        x.add_(output)

    def _activate(self, gate_up: Tensor) -> Tensor:
        """From [tokens, 2 * size] to [tokens, size]."""
        if not self._has_kernels:
            gate, up = gate_up.chunk(2, dim=-1)
            return functional.silu(gate).mul_(up)
        activated = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        cpu_kernels.activate(elements(activated), elements(gate_up))
        return activated

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        dtype, epsilon = self.weights.dtype, self.weights.norm_eps
        if not self._has_kernels:
            return functional.rms_norm(x, weight.shape, weight.float(), epsilon).to(dtype)
        normed = torch.empty_like(x, dtype=dtype)
        cpu_kernels.normalise(elements(normed), elements(x), elements(weight), epsilon)
        return normed
