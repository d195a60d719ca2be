"""The model runner of a GPU, put together.

Only a worker with a GPU imports this, and Triton with it.
"""

from anole_shared.ids import RequestId
from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.runtime.decode_graphs import DecodeGraphs, Recorder, buckets
from anole_worker.runtime.gpu_batches import GpuBatches, GpuParts
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.idle_adapter import IDLE, load_idle
from anole_worker.runtime.kv_blocks import KvBlocks
from anole_worker.runtime.lora_triton import TritonBackend
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.network import Network
from anole_worker.runtime.paged_attention import PagedAttention
from anole_worker.runtime.weights import ModelWeights
from anole_worker.settings import WorkerSettings

_COSTLY = Sampling(temperature=1.0, top_p=0.9, logprobs=1, logit_bias=((0, 0.0),))
"""A way to draw that takes as much memory as any."""


class GpuRunner:
    """The runner, with the blocks that its keys and values are in."""

    def __init__(
        self,
        weights: ModelWeights,
        settings: WorkerSettings,
        grammars: Grammars,
        recorder: Recorder | None,
    ) -> None:
        """recorder: for decode steps; None: none are recorded."""
        shape, device = weights.shape, weights.embedding.device
        self._max_num_seqs = settings.max_num_seqs
        self._max_tokens = max(settings.token_budget, settings.max_num_seqs)
        self._max_len = shape.max_model_len
        self.blocks = KvBlocks(shape, settings.block_size, dtype=weights.dtype, device=device)
        parts = GpuParts(
            blocks=self.blocks,
            attention=PagedAttention(self.blocks, settings.max_num_seqs),
            lora=TritonBackend(
                shape, dtype=weights.dtype, device=device, max_tokens=self._max_tokens
            ),
        )
        decodes = None
        if recorder is not None:
            decodes = DecodeGraphs(
                Network(weights),
                parts,
                recorder,
                max_num_seqs=settings.max_num_seqs,
                max_len=shape.max_model_len,
            )
        self.runner = ModelRunner(weights, GpuBatches(parts), grammars, decodes)

    def warm_up(self) -> None:
        """Run steps of all sizes up to the largest that there can be.

        It compiles kernels, those that prompts of adapters run among them, and shows how much
        memory steps take.
        """
        idle = load_idle(self.blocks.shape, self.blocks.device)
        runs = [(size, size // 2) for size in buckets(self._max_tokens)]
        for num_tokens, num_single in (*runs, (self._max_tokens, self._max_tokens - 1)):
            for adapter in (None, IDLE):
                step = self._step(num_tokens, min(num_single, self._max_num_seqs - 1), adapter)
                self.runner.run(step, {IDLE: idle})
        self.blocks.give_back(range(self._max_num_seqs))

    def _step(self, num_tokens: int, num_single: int, adapter: Adapter | None) -> Step:
        """Single tokens, and a chunk at the end of the longest sequence that there can be.

        The chunk's past is one block over and over: what is in it does not matter.
        """
        chunk = min(num_tokens - num_single, self._max_len)
        blocks = (0,) * div_ceil(self._max_len, self.blocks.block_size)
        rows = [self._row(0, blocks, chunk, self._max_len - chunk, adapter)]
        rows += [self._row(index, (index,), 1, 0, adapter) for index in range(1, num_single + 1)]
        return Step(rows=tuple(rows))

    @staticmethod
    def _row(
        index: int, block_table: tuple[int, ...], count: int, start: int, adapter: Adapter | None
    ) -> Row:
        return Row(
            request_id=RequestId(f"warm-up {index}"),
            adapter=adapter,
            token_ids=(0,) * count,
            start=start,
            block_table=block_table,
            sampling=_COSTLY,
        )
