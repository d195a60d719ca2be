"""The worker's device with adapters in leased regions, and steps to run on it without an engine."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from anole_shared.clock import SystemClock
from anole_shared.ids import AdapterId, RequestId
from anole_shared.settings import load
from anole_shared.units import GiB, div_ceil, region_bytes
from anole_worker import model_shape
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.leases import RegionClient
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.device import Device
from anole_worker.runtime.weights import preferred_dtype
from anole_worker.settings import WorkerSettings
from bench.memd import leasing
from bench.section import Plan

CONTEXT = 128
MAX_ROWS = 32
TOKEN_BUDGET = 256
GREEDY = Sampling(temperature=0.0)
_MEMORY_BYTES = GiB
_FIRST_TOKEN = 100
_APART = 7
"""Blocks between a row's own."""


def preferred(plan: Plan) -> torch.dtype:
    """What the device computes fastest in."""
    return preferred_dtype(torch.device(plan.device))


def dtypes(plan: Plan) -> list[torch.dtype]:
    """float32, and what this machine computes fastest in where that is another; or that alone."""
    if plan.is_quick or plan.is_on_gpu:
        return [preferred(plan)]
    return list(dict.fromkeys((torch.float32, preferred(plan))))


def clock(plan: Plan) -> Callable[[], float]:
    """By which steps are timed, which end when their tokens are on the host."""
    return time.perf_counter if plan.is_on_gpu else time.process_time


def name_of(dtype: torch.dtype) -> str:
    """Without torch's prefix."""
    return str(dtype).removeprefix("torch.")


class Rig:
    """A device whose rows each have blocks of their own; row n is always in the same ones.

    On a CPU no two of them are neighbours, as it is after a while.
    """

    def __init__(
        self, plan: Plan, dtype: torch.dtype, memd_socket: Path, step_threads: int = 1
    ) -> None:
        self.dtype = dtype
        self.memd_socket = memd_socket
        self.target = torch.device(plan.device)
        self.shape = model_shape.read(plan.model)
        settings = load(
            WorkerSettings,
            dtype=name_of(dtype),
            memory_bytes=_MEMORY_BYTES,
            num_threads=1,
            step_threads=step_threads,
            device=plan.device,
            max_num_seqs=MAX_ROWS,
            token_budget=TOKEN_BUDGET,
        )
        regions = RegionClient(memd_socket, "bench")
        self.device = Device(plan.model, self.shape, settings, regions, SystemClock())
        self._block_size = settings.block_size
        apart = 1 if plan.is_on_gpu else _APART
        num_blocks = self.device.memory_bytes // self.device.block_bytes
        self._blocks = [
            block for first in range(apart) for block in range(first, num_blocks, apart)
        ]
        self._num_loaded = 0

    def load(self, file: AdapterFile) -> Adapter:
        """Load the adapter, under a name of its own, into a region of its own."""
        self._num_loaded += 1
        name = f"{file.adapter_id}-{self._num_loaded}"
        adapter = adapter_of(file, name, self.device.adapter_bytes(file))
        self.device.load_adapter(adapter, file, {})
        return adapter

    def load_distinct(self, files: Sequence[AdapterFile], count: int) -> list[Adapter]:
        """So many adapters, of the files by turns, no two in the same memory."""
        return [self.load(files[index % len(files)]) for index in range(count)]

    def drop(self, adapters: Sequence[Adapter]) -> None:
        """Give their memory back."""
        for adapter in adapters:
            self.device.drop_adapter(adapter)

    def fill(self, num_rows: int, num_tokens: int = CONTEXT) -> None:
        """Compute the rows' contexts, so that there are keys and values in memory to be read."""
        for step in self.prompts([None] * num_rows, num_tokens):
            self.device.run(step)

    def decode(self, adapters: Sequence[Adapter | None], context: int = CONTEXT) -> Step:
        """One new token for each row, as the last of so many tokens."""
        return _step(
            self._row(index, adapter, context - 1, 1, context)
            for index, adapter in enumerate(adapters)
        )

    def prompts(self, adapters: Sequence[Adapter | None], num_tokens: int) -> list[Step]:
        """A prompt for each row, as steps of at most TOKEN_BUDGET tokens."""
        steps: list[list[Row]] = [[]]
        left = TOKEN_BUDGET
        for index, adapter in enumerate(adapters):
            begin = 0
            while begin < num_tokens:
                if left == 0:
                    steps.append([])
                    left = TOKEN_BUDGET
                size = min(left, num_tokens - begin)
                steps[-1].append(self._row(index, adapter, begin, size, num_tokens))
                begin, left = begin + size, left - size
        return [_step(rows) for rows in steps]

    def mixed(
        self, adapters: Sequence[Adapter | None], context: int, adapter: Adapter | None, size: int
    ) -> Step:
        """decode()'s rows, and a prompt of so many tokens that runs with them."""
        decodes = self.decode(adapters, context).rows
        taken = len(adapters) * div_ceil(context, self._block_size)
        index = div_ceil(taken, div_ceil(size, self._block_size))
        return _step([*decodes, self._row(index, adapter, 0, size, size)])

    def _row(
        self, index: int, adapter: Adapter | None, start: int, size: int, num_tokens: int
    ) -> Row:
        num_blocks = div_ceil(num_tokens, self._block_size)
        first = index * num_blocks
        tokens = range(_FIRST_TOKEN + start + index, _FIRST_TOKEN + start + index + size)
        return Row(
            request_id=RequestId(f"row-{index}"),
            adapter=adapter,
            token_ids=tuple(tokens),
            start=start,
            block_table=tuple(self._blocks[first : first + num_blocks]),
            sampling=GREEDY if start + size == num_tokens else None,
        )


def adapter_of(file: AdapterFile, name: str, num_bytes: int) -> Adapter:
    """What the engine core would know of the file under this name, whose weights take so much."""
    return Adapter(
        adapter_id=AdapterId(name),
        generation=file.generation,
        num_bytes=region_bytes(num_bytes),
        rank=file.rank,
    )


@contextmanager
def rigged(plan: Plan, dtype: torch.dtype, step_threads: int = 1) -> Iterator[Rig]:
    """A rig with a memd of its own."""
    with leasing() as socket:
        rig = Rig(plan, dtype, socket, step_threads)
        try:
            yield rig
        finally:
            rig.device.close()


def weight_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """The base model's weights that a step reads: all matrices, and the head."""
    return dtype.itemsize * (linear_weights(shape) + shape.vocab_size * shape.hidden_size)


def linear_weights(shape: ModelShape) -> int:
    """Numbers in the matrices of all layers."""
    layer = sum(inputs * outputs for inputs, outputs in shape.module_dims.values())
    return layer * shape.num_layers


def kv_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """One token's keys and values in all layers."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * dtype.itemsize


def _step(rows: Iterable[Row]) -> Step:
    """The rows in the order that a step wants: base first, one adapter's together."""
    ordered = sorted(rows, key=lambda row: row.adapter.adapter_id if row.adapter else "")
    return Step(rows=tuple(ordered))
