"""Lays steps out for a CPU: keys and values by their slots in one pool, adapters by their rows.

Steps of many tokens are laid out in parts, for threads that run them at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Step
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.attention import attend, has_loop
from anole_worker.runtime.compiled_layers import CompiledLayers
from anole_worker.runtime.crew import Turns, do_meet, shares
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.lora import AdaptedTokens, Deltas, LoopDeltas
from anole_worker.runtime.lora_rows import RowsBackend, RowsDeltas
from anole_worker.runtime.network import Batch
from anole_worker.runtime.packed_step import PackedStep, Segment, pack
from anole_worker.runtime.weights import ModelWeights

_LEAST_TOKENS, _LEAST_COMPILED = 24, 4
"""Of a part. Each reads all weights, and where layers are not one call its threads wait for each
other's Python."""


class CpuBatches:
    """Steps over one KV pool."""

    def __init__(self, weights: ModelWeights, kv_cache: KvCache, num_threads: int = 1) -> None:
        """num_threads: in so many parts at most. Steps must run one after the other."""
        self._dtype = weights.dtype
        self._kv_cache = kv_cache
        self._has_loop = has_loop(weights.dtype, weights.shape.head_dim)
        self._num_threads = num_threads
        self._least = _LEAST_TOKENS
        self._num_layers = weights.shape.num_layers
        self._make_deltas: Callable[[Sequence[AdaptedTokens]], Deltas] = LoopDeltas
        self._layers: CompiledLayers | None = None
        if RowsBackend.knows(weights.dtype):
            backend = RowsBackend(weights.shape, weights.dtype)
            self._make_deltas = backend.deltas
            if CompiledLayers.known(weights):
                self._layers = CompiledLayers(weights, kv_cache, backend)
                self._least = _LEAST_COMPILED

    def make(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> list[Batch]:
        """The step, which has rows, as the network wants it."""
        parts = shares(step, self._num_threads, self._least)
        if len(parts) == 1:
            return [self._make(step, adapters)]
        if not do_meet(parts, self._kv_cache.block_size):
            return [self._make(part, adapters) for part in parts]
        turns = Turns(len(parts), self._num_layers)
        return [
            replace(
                self._make(part, adapters, partial(turns.written, index)),
                give_up=partial(turns.give_up, index),
            )
            for index, part in enumerate(parts)
        ]

    def _make(
        self,
        step: Step,
        adapters: Mapping[Adapter, LoadedAdapter],
        written: Callable[[int], None] | None = None,
    ) -> Batch:
        packed = pack(step, self._kv_cache, self._dtype, has_loop=self._has_loop)
        deltas = self._make_deltas(adapted_tokens(packed.segments, adapters))
        batch = Batch(
            token_ids=packed.token_ids,
            positions=packed.positions,
            sampled=packed.sampled,
            attend=partial(self._attend, packed, written),
            deltas=deltas,
        )
        if self._layers is None or not isinstance(deltas, RowsDeltas):
            return batch
        run = partial(self._layers.run, packed=packed, deltas=deltas, written=written)
        return replace(batch, layers=run)

    def _attend(
        self,
        packed: PackedStep,
        written: Callable[[int], None] | None,
        queries: Tensor,
        keys_values: Tensor,
        layer: int,
    ) -> Tensor:
        self._kv_cache.write(layer, packed.slots, keys_values)
        if written is not None:
            written(layer)
        return attend(queries, keys_values, self._kv_cache, layer, packed)


def adapted_tokens(
    segments: Sequence[Segment], adapters: Mapping[Adapter, LoadedAdapter]
) -> list[AdaptedTokens]:
    """The segments with their adapters' weights."""
    return [
        AdaptedTokens(
            begin=segment.begin,
            end=segment.end,
            layers=adapters[segment.adapter].layers,
            table=adapters[segment.adapter].table,
        )
        for segment in segments
    ]
