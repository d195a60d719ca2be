"""Lays steps out for a GPU: on the host, in one piece of memory, which is copied at once.

Only a worker with a GPU imports this, and Triton with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Step
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.cpu_batches import adapted_tokens
from anole_worker.runtime.kv_blocks import Addresses, KvBlocks
from anole_worker.runtime.lora import LoopDeltas
from anole_worker.runtime.lora_triton import TritonBackend
from anole_worker.runtime.network import Batch
from anole_worker.runtime.packed_step import segments_of
from anole_worker.runtime.paged_attention import Chunk, DecodeRows, PagedAttention

_NOTHING = np.zeros(1, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuParts:
    """What the steps of one GPU share."""

    blocks: KvBlocks
    attention: PagedAttention
    lora: TritonBackend


class GpuBatches:
    """Steps of prompts and single tokens alike."""

    def __init__(self, parts: GpuParts) -> None:
        self._parts = parts

    def make(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> list[Batch]:
        """The step, which has rows, as the network wants it: in one.

        Raises:
            torch.OutOfMemoryError: there is no memory for a block.
        """
        blocks = self._parts.blocks
        rows, numbers = step.rows, _Numbers()
        ends = np.cumsum([len(row.token_ids) for row in rows])
        addresses = [addresses_of(row, blocks) for row in rows]
        token_ids = numbers.add([token_id for row in rows for token_id in row.token_ids])
        positions = numbers.add(np.concatenate([np.arange(row.start, end_of(row)) for row in rows]))
        places = numbers.add(
            np.concatenate(
                [
                    blocks.places(own, row.start, end_of(row))
                    for row, own in zip(rows, addresses, strict=True)
                ]
            )
        )
        is_sampling = [row.sampling is not None for row in rows]
        sampled = numbers.add(ends[is_sampling] - 1)
        decoding = [index for index, row in enumerate(rows) if len(row.token_ids) == 1]
        own_tokens = numbers.add(ends[decoding] - 1)
        lengths = numbers.add([end_of(rows[index]) for index in decoding])
        tables = numbers.add(columns([addresses[index] for index in decoding], len(decoding)))
        chunks = [
            (row, int(end), numbers.add(own))
            for row, end, own in zip(rows, ends, addresses, strict=True)
            if len(row.token_ids) > 1
        ]
        device = blocks.device
        on_device = numbers.moved(device)
        decodes = DecodeRows(
            tokens=None if len(decoding) == len(rows) else on_device[own_tokens],
            lengths=on_device[lengths],
            tables=on_device[tables],
            row_stride=len(decoding),
        )
        begins = [int(end) - len(row.token_ids) for row, end in zip(rows, ends, strict=True)]
        adapted = adapted_tokens(segments_of(rows, begins, ends.tolist()), adapters)
        batch = Batch(
            token_ids=on_device[token_ids],
            positions=on_device[positions].unsqueeze(0),
            sampled=on_device[sampled],
            attend=partial(
                self._parts.attention,
                places=on_device[places],
                decodes=decodes if decoding else None,
                chunks=[_chunk(row, end, on_device[own], device) for row, end, own in chunks],
            ),
            deltas=self._parts.lora.deltas(adapted) if adapted else LoopDeltas(()),
        )
        return [batch]


class _Numbers:
    """Numbers for the device, one after the other.

    Each part begins on 16 bytes, as torch's own tensors do: kernels are compiled anew, in the
    middle of a step, for what does not.
    """

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int64]] = []
        self._end = 0

    def add(self, numbers: Sequence[int] | NDArray[np.int64]) -> slice:
        """Where they will be."""
        begin = self._end
        part = np.asarray(numbers, dtype=np.int64).reshape(-1)
        self._parts += [part, _NOTHING[: part.size % 2]]
        self._end += part.size + part.size % 2
        return slice(begin, begin + part.size)

    def moved(self, device: torch.device) -> Tensor:
        """All of them on the device; nothing waits for the copy."""
        source = torch.from_numpy(np.concatenate(self._parts))
        if device.type == "cuda":
            source = source.pin_memory()
        return source.to(device, non_blocking=True)


def end_of(row: Row) -> int:
    """The position behind the row's tokens."""
    return row.start + len(row.token_ids)


def addresses_of(row: Row, blocks: KvBlocks) -> Addresses:
    """Of the blocks that the row's tokens so far are in, or go to."""
    return blocks.addresses(row.block_table[: div_ceil(end_of(row), blocks.block_size)])


def columns(addresses: Sequence[Addresses], num_rows: int) -> NDArray[np.int64]:
    """Each row's table as a column of [the longest's blocks, num_rows]; 0 where it is shorter."""
    longest = max((len(own) for own in addresses), default=0)
    tables = np.zeros((longest, num_rows), dtype=np.int64)
    for index, own in enumerate(addresses):
        tables[: len(own), index] = own
    return tables


def _chunk(row: Row, end: int, table: Tensor, device: torch.device) -> Chunk:
    is_seen = None
    if row.start:
        positions = torch.arange(end_of(row), device=device)
        is_seen = positions <= positions[row.start :, None]
    return Chunk(
        begin=end - len(row.token_ids), end=end, past=row.start, table=table, is_seen=is_seen
    )
