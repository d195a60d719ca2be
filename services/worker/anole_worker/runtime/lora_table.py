"""Where an adapter's tensors are, as numbers that kernels read: no copy, no slots, no padding.

A table is int64 [layers, SITES, RECORD]. A record is the address of the stacked As (a site's
down, transposed), the addresses of up to three Bs, then four marks in the stacked ranks: where the
first, second and third module's begin and where the last ends. A module that the adapter leaves
alone has no ranks; a site of which it changes nothing is zeros. Then, for the CPU's loops alone,
which type the numbers are of, and the bits of each module's scale in float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime import cpu_numbers
from anole_worker.runtime.lora import LayerDelta, SiteDelta

MAX_MODULES = max(len(modules) for modules in SITES)
RECORD = 1 + MAX_MODULES + (MAX_MODULES + 1) + 1 + MAX_MODULES
VECTOR = 16
"""Sizes that divide by it let a GPU move 16 bytes at a time, whatever the type."""
_KINDS = {
    torch.float32: cpu_numbers.FLOAT32,
    torch.float16: cpu_numbers.FLOAT16,
    torch.bfloat16: cpu_numbers.BFLOAT16,
}


def make_table(layers: Sequence[LayerDelta], shape: ModelShape) -> Tensor:
    """The table of the adapter's tensors, which must stay where they are; itself on the CPU."""
    columns = [[shape.columns(module).start for module in modules] for modules in SITES]
    return torch.tensor(
        [[_record(delta, columns[site]) for site, delta in enumerate(layer)] for layer in layers],
        dtype=torch.int64,
    )


def empty_table(shape: ModelShape) -> Tensor:
    """The table of an adapter that changes nothing."""
    return torch.zeros((shape.num_layers, len(SITES), RECORD), dtype=torch.int64)


def is_aligned(shape: ModelShape) -> bool:
    """Whether every module's rows begin on 16 bytes when the adapter does."""
    return all(size % VECTOR == 0 for dims in shape.module_dims.values() for size in dims)


def _record(delta: SiteDelta | None, columns: Sequence[int]) -> list[int]:
    if delta is None:
        return [0] * RECORD
    parts = {part.columns.start: part for part in delta.parts}
    addresses, marks, scales = [delta.down.data_ptr()], [0], []
    for column in columns:
        part = parts.get(column)
        addresses.append(0 if part is None else part.up.data_ptr())
        marks.append(marks[-1] if part is None else part.ranks.stop)
        scales.append(0 if part is None else int(np.float32(part.scale).view(np.int32)))
    absent = MAX_MODULES - len(columns)
    nothing = [0] * absent
    kind = _KINDS[delta.down.dtype]
    return [*addresses, *nothing, *marks, *[marks[-1]] * absent, kind, *scales, *nothing]
