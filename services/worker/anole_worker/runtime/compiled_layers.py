"""The model's layers as one compiled call, on a CPU in bfloat16."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from anole_worker.runtime import cpu_layers
from anole_worker.runtime.cpu_heads import DIMS
from anole_worker.runtime.cpu_layers import Layers, Tokens
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.lora_rows import RowsBackend, RowsDeltas
from anole_worker.runtime.lora_table import RECORD
from anole_worker.runtime.packed_step import PackedStep
from anole_worker.runtime.projection import elements
from anole_worker.runtime.weights import LayerWeights, ModelWeights

Arrays = list[NDArray[np.generic] | None]


class CompiledLayers:
    """Layers whose weights are in the loops' own layout (see projection)."""

    def __init__(self, weights: ModelWeights, kv_cache: KvCache, backend: RowsBackend) -> None:
        """All weights must be `known`."""
        shape = self._shape = weights.shape
        self._kept = [_arrays(layer) for layer in weights.layers]
        """What the addresses lead to."""
        self._layers = Layers(
            addresses=np.array([_addresses(arrays) for arrays in self._kept]),
            heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            pool=elements(kv_cache.rows),
            block_size=kv_cache.block_size,
            epsilon=weights.norm_eps,
            columns=backend.columns,
            sizes=backend.sizes,
            record=RECORD,
        )

    @staticmethod
    def known(weights: ModelWeights) -> bool:
        """Whether these are weights in the loops' layout, and heads of a size that they know."""
        return weights.shape.head_dim % DIMS == 0 and all(
            projection.packed is not None
            for layer in weights.layers
            for projection in layer.projections
        )

    def run(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        packed: PackedStep,
        deltas: RowsDeltas,
        written: Callable[[int], None] | None,
    ) -> None:
        """Take the states x of a step's tokens, whose attention is loops', through all layers.

        written: to be called with each layer once its keys and values are in the pool.
        """
        attended, shape, count = packed.loop_rows, self._shape, len(x)
        assert attended is not None
        heads, size = shape.num_heads, shape.head_dim
        tokens = Tokens(
            cos=elements(cos[:, 0]),
            sin=elements(sin[:, 0]),
            places=packed.slots.numpy(),
            rows=attended.rows,
            slots=attended.slots,
            tiles=deltas.tiles,
            room=deltas.room,
            normed=_room(count, x.shape[1]),
            qkv=_room(count, heads + 2 * shape.num_kv_heads, size),
            attended=_room(count, heads * size),
            gate_up=_room(count, 2 * shape.intermediate_size),
            activated=_room(count, shape.intermediate_size),
        )
        states = elements(x)
        if written is None:
            cpu_layers.run(states, self._layers, tokens)
            return
        for layer in range(shape.num_layers):
            cpu_layers.write(states, layer, self._layers, tokens)
            written(layer)
            cpu_layers.finish(states, layer, self._layers, tokens)


def _room(*sizes: int) -> NDArray[np.uint16]:
    return np.empty(sizes, dtype=np.uint16)


def _arrays(layer: LayerWeights) -> Arrays:
    """In the order of cpu_layers' addresses."""
    packed = [projection.packed for projection in layer.projections]
    return [
        elements(layer.attention_norm),
        None if layer.qk_norm is None else elements(layer.qk_norm),
        elements(layer.mlp_norm),
        *(None if one is None else one.blocks for one in packed),
        *(None if one is None else one.bias for one in packed),
    ]


def _addresses(arrays: Arrays) -> list[int]:
    return [0 if array is None or not array.size else array.ctypes.data for array in arrays]
