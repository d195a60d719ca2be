"""Writes PEFT directories byte by byte, so that a test can get any one of them wrong."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from anole_worker.model_shape import MODULE_PATHS, ModelShape

SHAPE = ModelShape(
    family="llama",
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=100,
    max_model_len=128,
    eos_token_ids=(2,),
)


def config(**fields: Any) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "task_type": "CAUSAL_LM",
        **fields,
    }


def tensor_name(layer: int, module: str, side: str) -> str:
    return f"base_model.model.model.layers.{layer}.{MODULE_PATHS[module]}.lora_{side}.weight"


def tensors(
    shape: ModelShape = SHAPE,
    *,
    rank: int = 4,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    layers: Sequence[int] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    result = {}
    for layer in range(shape.num_layers) if layers is None else layers:
        for module in modules:
            num_in, num_out = shape.module_dims[module]
            for side, size in (("A", (rank, num_in)), ("B", (num_out, rank))):
                result[tensor_name(layer, module, side)] = random.normal(size=size).astype(dtype)
    return result


def write_adapter(
    folder: Path,
    *,
    weights: Mapping[str, np.ndarray] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Path:
    """A good adapter, unless the caller gives other weights or fields of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(tensors() if weights is None else weights), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config(**(fields or {}))))
    return folder


def write_raw(path: Path, header: Any, data: bytes) -> Path:
    """A safetensors file of any header, whether it fits the data or not."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)
    return path
