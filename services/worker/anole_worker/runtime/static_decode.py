"""A decode step over buffers that stay where they are: all that a CUDA graph records.

It runs as many rows as it was made for. A step of fewer is filled up with rows whose keys and
values go to a scratch block, and whose logits nobody reads. Only a worker with a GPU imports this,
and Triton with it.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Step
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.cpu_batches import adapted_tokens
from anole_worker.runtime.gpu_batches import GpuParts, addresses_of, columns, end_of
from anole_worker.runtime.lora import Deltas, LoopDeltas
from anole_worker.runtime.network import Batch, Network
from anole_worker.runtime.packed_step import segments_of
from anole_worker.runtime.paged_attention import DecodeRows

_PER_ROW = 4
"""Numbers of a row beside its table: token, position, place, length."""


class StaticInputs:
    """The buffers of steps of at most so many rows: on the host, and on the device."""

    def __init__(self, parts: GpuParts, num_rows: int, max_len: int) -> None:
        """max_len: of a sequence, in tokens."""
        self.num_rows = num_rows
        self._blocks = parts.blocks
        max_blocks = div_ceil(max_len, parts.blocks.block_size)
        size = num_rows * (_PER_ROW + max_blocks)
        device = parts.blocks.device
        # Rows of scratch, until something is set.
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._fill_up(0)
        self._device = self._host.to(device)

    def set(self, step: Step) -> None:
        """Make it the rows of this step, in the order of the stream."""
        rows, count, numbers = step.rows, self.num_rows, self._host.numpy()
        addresses = [addresses_of(row, self._blocks) for row in rows]
        self._fill_up(len(rows))
        for index, (row, own) in enumerate(zip(rows, addresses, strict=True)):
            (place,) = self._blocks.places(own, row.start, end_of(row))
            numbers[index : _PER_ROW * count : count] = (
                row.token_ids[0],
                row.start,
                place,
                end_of(row),
            )
        tables = columns(addresses, count)
        tables[:1, len(rows) :] = self._blocks.scratch
        used = _PER_ROW * count + tables.size
        numbers[_PER_ROW * count : used] = tables.reshape(-1)
        # One piece: tables are columns, so that what is unused lies behind them all.
        self._device[:used].copy_(self._host[:used], non_blocking=True)

    def _fill_up(self, num_used: int) -> None:
        """Make the rows from there on ones of one token, in the scratch block."""
        count, numbers = self.num_rows, self._host.numpy()
        table = numbers[_PER_ROW * count : (_PER_ROW + 1) * count]
        for part, value in enumerate((0, 0, self._blocks.scratch, 1)):
            numbers[part * count + num_used : (part + 1) * count] = value
        table[num_used:] = self._blocks.scratch

    def batch(self, parts: GpuParts, deltas: Deltas) -> Batch:
        """The buffers as the network wants them: views, valid for all that is set."""
        token_ids, positions, places, lengths = self._device[: _PER_ROW * self.num_rows].view(
            _PER_ROW, -1
        )
        decodes = DecodeRows(
            tokens=None,
            lengths=lengths,
            tables=self._device[_PER_ROW * self.num_rows :],
            row_stride=self.num_rows,
        )
        return Batch(
            token_ids=token_ids,
            positions=positions.unsqueeze(0),
            sampled=torch.empty(0, dtype=torch.int64),
            attend=partial(parts.attention, places=places, decodes=decodes, chunks=()),
            deltas=deltas,
        )


class StaticDecode:
    """A decode step of up to so many rows, with adapters or without."""

    def __init__(
        self, network: Network, parts: GpuParts, inputs: StaticInputs, *, has_adapters: bool
    ) -> None:
        self._network = network
        self._inputs = inputs
        self._deltas = parts.lora.recordable(inputs.num_rows) if has_adapters else None
        self._batch = inputs.batch(parts, self._deltas or LoopDeltas(()))

    def set(self, step: Step, adapters: Mapping[Adapter, LoadedAdapter]) -> None:
        """Make it this step, whose rows have a token each, in the order of the stream."""
        self._inputs.set(step)
        if self._deltas is not None:
            ends = np.arange(1, len(step.rows) + 1).tolist()
            segments = segments_of(step.rows, [end - 1 for end in ends], ends)
            self._deltas.set(adapted_tokens(segments, adapters))

    def run(self) -> Tensor:
        """Logits [rows, vocab] fp32, those that fill up among them."""
        return self._network.head(self._network.states(self._batch))
