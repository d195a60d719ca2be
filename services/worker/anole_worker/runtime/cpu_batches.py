"""Lays steps out for a CPU: keys and values by their slots in one pool, adapters by their rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Step
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.attention import attend
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.lora import AdaptedTokens, Deltas, LoopDeltas
from anole_worker.runtime.lora_rows import RowsBackend
from anole_worker.runtime.network import Batch
from anole_worker.runtime.packed_step import PackedStep, Segment, pack
from anole_worker.runtime.weights import ModelWeights


class CpuBatches:
    """Steps over one KV pool."""

    def __init__(self, weights: ModelWeights, kv_cache: KvCache) -> None:
        """Steps must run one after the other."""
        self._dtype = weights.dtype
        self._kv_cache = kv_cache
        self._make_deltas: Callable[[Sequence[AdaptedTokens]], Deltas] = LoopDeltas
        if RowsBackend.knows(weights.dtype):
            self._make_deltas = RowsBackend(weights.shape, weights.dtype).deltas

    def make(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> Batch:
        """The step, which has rows, as the network wants it."""
        packed = pack(step, self._kv_cache, self._dtype)
        return Batch(
            token_ids=packed.token_ids,
            positions=packed.positions,
            sampled=packed.sampled,
            attend=partial(self._attend, packed),
            deltas=self._make_deltas(adapted_tokens(packed.segments, adapters)),
        )

    def _attend(
        self, packed: PackedStep, queries: Tensor, keys_values: Tensor, layer: int
    ) -> Tensor:
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
