"""An adapter that changes nothing: steps with it compile what steps with adapters run."""

import torch

from anole_shared.ids import AdapterId
from anole_worker.core.adapter import Adapter
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.lora_table import empty_table

IDLE = Adapter(adapter_id=AdapterId("warm-up"), generation="", num_bytes=0, rank=1)


def load_idle(shape: ModelShape, device: torch.device) -> LoadedAdapter:
    """Its weights: none. For kernels only, which read its table."""
    table = empty_table(shape).to(device)
    return LoadedAdapter(IDLE.adapter_id, IDLE.generation, (), torch.empty(0), table)
