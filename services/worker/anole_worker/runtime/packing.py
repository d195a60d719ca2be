"""How many bytes an adapter's numbers take in memory, and of which type they are there."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from anole_worker.adapter_files import AdapterFile

_DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class Packing:
    """What the adapters of one worker are packed to."""

    model: torch.dtype
    """Of the base model."""
    keeps: bool = False
    """Whether numbers stay what they are in the file, and steps widen and scale them.

    Else they are brought to the model's type, those of each B multiplied with the scale.
    """

    def dtype(self, file: AdapterFile) -> torch.dtype:
        """Of the adapter's numbers in memory."""
        return _DTYPES[file.stored] if self.keeps else self.model

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """All that an adapter may have."""
        return tuple(_DTYPES.values()) if self.keeps else (self.model,)

    def num_bytes(self, file: AdapterFile) -> int:
        """Of all its numbers."""
        return file.packed_bytes(self.dtype(file).itemsize)


def packing_on(device: torch.device, model: torch.dtype) -> Packing:
    """What steps of a model of this type there are fastest with.

    Widening 16 bits to float32 is exact and, on a CPU, cheaper than reading another 16.
    """
    return Packing(model, keeps=device.type == "cpu" and model == torch.float32)
