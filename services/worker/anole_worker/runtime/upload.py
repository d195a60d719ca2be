"""Brings adapters from host memory to a GPU while it computes.

Copies run on a stream of their own, so that no step waits for them; out of pinned memory they are
the work of the GPU's copy engine alone. memd's regions are pinned in place: no second buffer, and
the operating system moves no page of them meanwhile. Pinning is a call to the driver that takes
longer the more pages there are, so it is done once, when a region was filled, and not each time.

What needs a GPU here has not been run on one yet.
"""

import logging

import torch
from torch import Tensor

from anole_worker.model_shape import ModelShape
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.lora_table import make_table

log = logging.getLogger(__name__)


class Uploader:
    """Copies to one GPU. Its calls block until the copy is there: they are the loader thread's."""

    def __init__(self, shape: ModelShape, compute: torch.cuda.Stream) -> None:
        """compute: where steps run."""
        self._shape = shape
        self._compute = compute
        self._copies = torch.cuda.Stream(compute.device)
        self._pinned: set[int] = set()

    def pin(self, arena: Tensor) -> None:
        """Pin the memory of a CPU tensor, until its unpin, which it needs before it is unmapped.

        Where the driver refuses, uploads out of it are slower, and wait for steps.
        """
        torch.cuda.set_device(self._compute.device)
        result = torch.cuda.cudart().cudaHostRegister(arena.data_ptr(), arena.nbytes, 0)
        if int(result):
            log.warning("%d bytes cannot be pinned (CUDA error %d)", arena.nbytes, int(result))
        else:
            self._pinned.add(arena.data_ptr())

    def unpin(self, arena: Tensor) -> None:
        """Undo a pin; no upload out of the memory may be running.

        Raises torch.cuda.CudaError.
        """
        if arena.data_ptr() in self._pinned:
            self._pinned.remove(arena.data_ptr())
            torch.cuda.set_device(self._compute.device)
            _check(torch.cuda.cudart().cudaHostUnregister(arena.data_ptr()))

    def upload(self, adapter: LoadedAdapter) -> LoadedAdapter:
        """The adapter on the GPU.

        Its memory is free once nothing refers to it and the steps begun until then have ended.

        Raises torch.OutOfMemoryError.
        """
        device = self._compute.device
        # For good: going back to the thread's first one would take memory of that GPU for nothing.
        torch.cuda.set_device(device)
        # Taken as the steps' own memory is, which it shares: where a running step still uses what
        # it was, the copy waits for that one step.
        with torch.cuda.stream(self._compute):
            arena = torch.empty_like(adapter.arena, device=device)
            uploaded = adapter.over(arena)
            source = make_table(uploaded.layers, self._shape).pin_memory()
            table = torch.empty_like(source, device=device)
        # From here on nothing fails until all is copied: who is told of a failure reuses memory.
        self._copies.wait_stream(self._compute)
        with torch.cuda.stream(self._copies):
            arena.copy_(adapter.arena, non_blocking=True)
            table.copy_(source, non_blocking=True)
        self._copies.synchronize()
        uploaded.table = table
        return uploaded


def _check(result: int) -> None:
    if int(result):
        raise torch.cuda.CudaError(int(result))
