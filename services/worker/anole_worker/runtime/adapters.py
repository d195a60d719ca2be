"""An adapter's weights in memory: one arena, and views of it as the runner wants them."""

import math
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from mmap import mmap

import torch
from torch import Tensor

from anole_shared.ids import AdapterId
from anole_worker import adapter_files
from anole_worker.adapter_files import AdapterFile, OpenAdapter
from anole_worker.adapter_tensors import ModuleTensors
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import SITES, ModelShape
from anole_worker.runtime.lora import LayerDelta, SiteDelta, SitePart
from anole_worker.runtime.lora_table import make_table
from anole_worker.runtime.packing import Packing
from anole_worker.runtime.unpacking import Placement, unpack

_FLOAT32 = Packing(torch.float32)


class LoadedAdapter:
    """An adapter that a step can use, until it is released."""

    def __init__(
        self,
        adapter_id: AdapterId,
        generation: str,
        layers: tuple[LayerDelta, ...],
        arena: Tensor,
        table: Tensor | None,
    ) -> None:
        self.adapter_id = adapter_id
        self.generation = generation
        self.layers = layers
        """By layer: what the adapter adds at each of its SITES."""
        self.arena = arena
        """All its weights, which the layers are views of."""
        self.table = table
        """Where they are, for kernels (see lora_table)."""

    def over(self, arena: Tensor) -> "LoadedAdapter":
        """The same adapter as views of a copy of its arena, which may be on another device."""

        def viewed(tensor: Tensor) -> Tensor:
            begin = tensor.storage_offset() - self.arena.storage_offset()
            return arena.as_strided(tensor.shape, tensor.stride(), arena.storage_offset() + begin)

        def moved(delta: SiteDelta | None) -> SiteDelta | None:
            if delta is None:
                return None
            parts = tuple(replace(part, up=viewed(part.up)) for part in delta.parts)
            return SiteDelta(down=viewed(delta.down), parts=parts)

        layers = tuple(tuple(moved(delta) for delta in layer) for layer in self.layers)
        return LoadedAdapter(self.adapter_id, self.generation, layers, arena, None)

    def release(self) -> None:
        """Drop every view of the buffer, so that its owner can unmap it."""
        self.layers = ()
        self.arena = torch.empty(0)
        self.table = None


def load(
    file: AdapterFile,
    buffer: memoryview | mmap | bytearray,
    packing: Packing = _FLOAT32,
) -> LoadedAdapter:
    """Read the weights into the buffer, of at least the packing's num_bytes, and make views of it.

    Layer by layer and site by site the buffer holds the As of the site's modules, stacked, as one
    [sum of ranks, in], then each module's B as [rank, out]. While a view lives, so does an export
    of the buffer: an mmap under it cannot be closed.

    The file is read with its bounds checked, not mapped: if somebody cuts it short meanwhile, that
    is an error and not a fatal signal. Nothing points into the buffer after a failure.

    Raises AdapterRefused when the files are not those that were validated, or not finite numbers.
    """
    try:
        return _load(file, memoryview(buffer).cast("B"), packing)
    except BaseException as error:
        # The frames that failed would keep views of the buffer alive for as long as the error.
        traceback.clear_frames(error.__traceback__)
        del buffer
        raise


def _load(file: AdapterFile, buffer: memoryview, packing: Packing) -> LoadedAdapter:
    num_bytes = packing.num_bytes(file)
    if buffer.nbytes < num_bytes:
        raise ValueError(f"a buffer of {buffer.nbytes} bytes cannot hold {num_bytes}")
    with adapter_files.opened(file.path, file.shape) as adapter:
        _check_unchanged(file, adapter)
        arena = torch.frombuffer(buffer[:num_bytes], dtype=packing.dtype(file))
        layers: list[LayerDelta] = [(None,) * len(SITES) for _ in range(file.shape.num_layers)]
        placements: list[Placement] = []
        begin = 0
        for (layer, site), group in groupby(adapter.modules, key=lambda m: (m.layer, m.site)):
            modules = list(group)
            end = begin + sum(module.num_weights for module in modules)
            delta = _site(arena[begin:end], modules, packing, file.shape)
            layers[layer] = (*layers[layer][:site], delta, *layers[layer][site + 1 :])
            placements += _placements(begin, modules, packing)
            begin = end
        total = unpack(adapter, placements, arena)
        _check_unchanged(file, adapter)
        # One sum finds them all, tens of times as fast as a look at each.
        if not math.isfinite(total):
            raise AdapterRefused(
                adapter.weights_path,
                "it has weights that are infinite, next to it, or no numbers; train it again",
            )
    table = make_table(layers, file.shape)
    return LoadedAdapter(file.adapter_id, file.generation, tuple(layers), arena, table)


def _check_unchanged(file: AdapterFile, adapter: OpenAdapter) -> None:
    if adapter.fingerprints() != file.fingerprints:
        raise AdapterRefused(
            file.path,
            "its files changed since they were validated; restart the worker, which "
            "reads the folder again",
        )


def _site(
    arena: Tensor, modules: Sequence[ModuleTensors], packing: Packing, shape: ModelShape
) -> SiteDelta:
    """One site's part of the arena as its modules' factors."""
    num_ranks, num_in = sum(module.rank for module in modules), modules[0].a.shape[1]
    stacked = arena[: num_ranks * num_in].view(num_ranks, num_in)
    parts: list[SitePart] = []
    rank, begin = 0, stacked.numel()
    for module in modules:
        end = begin + module.b.shape[0] * module.rank
        up = arena[begin:end].view(module.rank, -1)
        ranks = slice(rank, rank + module.rank)
        columns = shape.columns(module.module)
        scale = module.scale if packing.keeps else 1.0
        parts.append(SitePart(columns=columns, ranks=ranks, up=up, scale=scale))
        rank, begin = ranks.stop, end
    return SiteDelta(down=stacked.t(), parts=tuple(parts))


def _placements(
    begin: int, modules: Sequence[ModuleTensors], packing: Packing
) -> Iterator[Placement]:
    """Where _site() looks for the factors of a site whose part of the arena begins there."""
    for module in modules:
        yield Placement(span=module.a, begin=begin)
        begin += module.rank * module.a.shape[1]
    for module in modules:
        scale = 1.0 if packing.keeps else module.scale
        yield Placement(span=module.b, begin=begin, scale=scale, is_turned=True)
        begin += module.b.shape[0] * module.rank
