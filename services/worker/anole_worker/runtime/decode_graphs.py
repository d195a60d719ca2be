"""Decode steps recorded as CUDA graphs, so that a step is one launch and not hundreds.

A graph keeps its sizes and addresses, not its numbers: each is recorded once for a number of rows,
with adapters and without, and serves every step of up to so many rows. Steps with prompts, or rows
whose tokens are scored, run the ordinary way.

What is recorded is static_decode's; it runs without a GPU as well. Recording itself (CudaRecorder)
has not been run on a GPU yet.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Step
from anole_worker.garbage import uncollected
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.gpu_batches import GpuParts
from anole_worker.runtime.network import Network
from anole_worker.runtime.static_decode import StaticDecode, StaticInputs

log = logging.getLogger(__name__)

_WARM_UPS = 2
"""Runs before a recording: they compile kernels and let libraries take their memory."""

Replay = Callable[[], Tensor]
"""Does what was recorded again; the same tensor each time, with new numbers."""


class Recorder(Protocol):
    """Makes a call that queues work on a device into one that replays it."""

    def record(self, call: Callable[[], Tensor]) -> Replay: ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: no two of them run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        # One for all: libraries keep memory for each stream that they were ever called on.
        self._stream = torch.cuda.Stream(device)

    def record(self, call: Callable[[], Tensor]) -> Replay:
        """Run it a few times, then record it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                call()
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # Kernels and graphs that go away call what may not be called while one is recorded.
        with (
            uncollected(),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream),
        ):
            result = call()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


def buckets(max_num_seqs: int) -> list[int]:
    """For how many rows there are graphs: powers of two, and the most that there can be."""
    sizes = [1 << power for power in range(max_num_seqs.bit_length())]
    return sizes if sizes[-1] == max_num_seqs else [*sizes, max_num_seqs]


class DecodeGraphs:
    """Graphs for all numbers of rows up to a worker's most: two for each of `buckets`."""

    def __init__(
        self,
        network: Network,
        parts: GpuParts,
        recorder: Recorder,
        *,
        max_num_seqs: int,
        max_len: int,
    ) -> None:
        """Record them all, the largest first, in whose memory the others find room.

        max_len: of a sequence, in tokens.
        """
        self._recorded: dict[tuple[int, bool], tuple[StaticDecode, Replay]] = {}
        self._sizes = buckets(max_num_seqs)
        for size in reversed(self._sizes):
            inputs = StaticInputs(parts, size, max_len)
            for has_adapters in (True, False):
                decode = StaticDecode(network, parts, inputs, has_adapters=has_adapters)
                replay = recorder.record(decode.run)
                self._recorded[size, has_adapters] = decode, replay
            log.info("recorded decode steps of up to %d rows", size)

    def logits(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> Tensor | None:
        """Of every row, [rows, vocab] fp32, valid until the next call.

        None for a step that is not for it.

        Raises:
            torch.OutOfMemoryError: there is no memory for a block.
        """
        rows = step.rows
        if not all(_is_decode(row) for row in rows):
            return None
        size = next((size for size in self._sizes if size >= len(rows)), None)
        if size is None:
            return None
        has_adapters = any(row.adapter is not None for row in rows)
        decode, replay = self._recorded[size, has_adapters]
        decode.set(step, adapters)
        return replay()[: len(rows)]


def _is_decode(row: Row) -> bool:
    return len(row.token_ids) == 1 and row.sampling is not None and row.score is None
