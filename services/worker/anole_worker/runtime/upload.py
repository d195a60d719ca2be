"""Brings adapters from host memory to a GPU while it computes.

Copies run on a stream of their own, so that no step waits for them; out of pinned memory they are
the work of the GPU's copy engine alone. memd's regions are pinned in place: no second buffer, and
the operating system moves no page of them meanwhile. Pinning is a call to the driver that takes
longer the more pages there are, so it is done once, when a region was filled, and not each time.

What needs a GPU here has not been run on one yet.
"""

import torch
from torch import Tensor

from anole_worker.model_shape import ModelShape
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.lora_table import make_table


def pin(arena: Tensor) -> None:
    """Pin the memory of a CPU tensor, until its unpin, which it needs before it is unmapped.

    Raises torch.cuda.CudaError where the driver refuses; an upload works then as well, slower.
    """
    _check(torch.cuda.cudart().cudaHostRegister(arena.data_ptr(), arena.nbytes, 0))


def unpin(arena: Tensor) -> None:
    """Undo a pin; no upload out of the memory may be running."""
    _check(torch.cuda.cudart().cudaHostUnregister(arena.data_ptr()))


class Uploader:
    """Copies to one GPU. Its calls block until the copy is there: they are the loader thread's."""

    def __init__(self, shape: ModelShape, compute: torch.cuda.Stream) -> None:
        """compute: where steps run."""
        self._shape = shape
        self._compute = compute
        self._copies = torch.cuda.Stream(compute.device)

    def upload(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """The adapter on the GPU.

        Its memory is free once nothing refers to it and the steps begun until then have ended.

        Raises torch.OutOfMemoryError.
        """
        device = self._compute.device
        with torch.cuda.stream(self._copies):
            arena = torch.empty_like(adapter.arena, device=device)
            arena.copy_(adapter.arena, non_blocking=True)
            uploaded = adapter.over(arena)
            table = make_table(uploaded.layers, self._shape).to(device)
        self._copies.synchronize()
        for tensor in (arena, table):
            tensor.record_stream(self._compute)
        uploaded.table = table
        return uploaded


def _check(result: int) -> None:
    if int(result):
        raise torch.cuda.CudaError(int(result))
