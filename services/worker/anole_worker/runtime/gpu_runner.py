"""The model runner of a GPU, put together.

Only a worker with a GPU imports this, and Triton with it.
"""

from anole_shared.ids import RequestId
from anole_shared.units import div_ceil
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.runtime.decode_graphs import DecodeGraphs, Recorder
from anole_worker.runtime.gpu_batches import GpuBatches, GpuParts
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.kv_blocks import KvBlocks
from anole_worker.runtime.lora_triton import TritonBackend
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.network import Network
from anole_worker.runtime.paged_attention import PagedAttention
from anole_worker.runtime.weights import ModelWeights
from anole_worker.settings import WorkerSettings

_COSTLY = Sampling(temperature=1.0, top_p=0.9, logprobs=1)
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
        """Run the largest step that there can be: it compiles kernels, and shows what it takes."""
        step = self._largest()
        self.runner.run(step, {})
        self.blocks.give_back(block for row in step.rows for block in row.block_table)

    def _largest(self) -> Step:
        """One prompt and single tokens, so many rows and tokens as may be."""
        count = min(self._max_num_seqs, self._max_tokens)
        longest = min(self._max_tokens - count + 1, self._max_len)
        rows, first = [], 0
        for index in range(count):
            num_tokens = longest if index == 0 else 1
            num_blocks = div_ceil(num_tokens, self.blocks.block_size)
            rows.append(
                Row(
                    request_id=RequestId(f"warm-up {index}"),
                    adapter=None,
                    token_ids=(0,) * num_tokens,
                    start=0,
                    block_table=tuple(range(first, first + num_blocks)),
                    sampling=_COSTLY,
                )
            )
            first += num_blocks
        return Step(rows=tuple(rows))
