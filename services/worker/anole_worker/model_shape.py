"""The base model's sizes, read from its config.json alone: cheap, and no tensor library."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anole_worker.errors import ModelRefused

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"

SITES: tuple[tuple[str, ...], ...] = (
    ("q_proj", "k_proj", "v_proj"),
    ("o_proj",),
    ("gate_proj", "up_proj"),
    ("down_proj",),
)
"""A layer's linear modules, grouped by the projections that run as one matrix product."""

QKV, OUTPUT, GATE_UP, DOWN = range(len(SITES))

MODULE_PATHS = {
    module: f"{'mlp' if site >= GATE_UP else 'self_attn'}.{module}"
    for site, modules in enumerate(SITES)
    for module in modules
}
"""Where a module lives inside its layer."""

_QWEN3_HEAD_DIM = 128
_MISTRAL_SLIDING_WINDOW = 4096
_BATCH_DEPENDENT_ROPE = ("dynamic", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The numbers that decide what fits: of the model, of its KV cache and of its adapters."""

    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_model_len: int
    """Longest sequence in tokens, prompt and output together."""
    eos_token_ids: tuple[int, ...]

    @property
    def module_dims(self) -> dict[str, tuple[int, int]]:
        """Input and output features of each linear module, by its name."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, intermediate = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, heads),
            "k_proj": (hidden, kv_heads),
            "v_proj": (hidden, kv_heads),
            "o_proj": (heads, hidden),
            "gate_proj": (hidden, intermediate),
            "up_proj": (hidden, intermediate),
            "down_proj": (intermediate, hidden),
        }

    def columns(self, module: str) -> slice:
        """A module's part of its fused projection's output."""
        dims = self.module_dims
        for modules in SITES:
            if module in modules:
                before = modules[: modules.index(module)]
                begin = sum(dims[name][1] for name in before)
                return slice(begin, begin + dims[module][1])
        raise KeyError(module)


def read(folder: Path) -> ModelShape:
    """Read a Hugging Face model folder's sizes.

    Raises ModelRefused when the folder holds no such model or one that the runner cannot run.
    """
    path = folder / CONFIG_NAME
    config = _read_json(path)
    if config is None:
        raise ModelRefused(path, "it is missing; point the model setting to a Hugging Face folder")
    _check_supported(path, config)
    hidden_size, num_heads = (
        _size(path, config, "hidden_size"),
        _size(path, config, "num_attention_heads"),
    )
    return ModelShape(
        family=config["model_type"],
        num_layers=_size(path, config, "num_hidden_layers"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=_size(path, config, "num_key_value_heads", default=num_heads),
        head_dim=_size(path, config, "head_dim", default=_default_head_dim(config)),
        intermediate_size=_size(path, config, "intermediate_size"),
        vocab_size=_size(path, config, "vocab_size"),
        max_model_len=_size(path, config, "max_position_embeddings"),
        eos_token_ids=_eos_token_ids(folder, config),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelRefused(path, f"it cannot be read ({error}); download the model anew") from error
    if not isinstance(data, dict):
        raise ModelRefused(path, "it holds no JSON object; download the model anew")
    return data


def _check_supported(path: Path, config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ModelRefused(
            path, f"model_type {family!r} is not supported; use one of {', '.join(FAMILIES)}"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise ModelRefused(path, "hidden_act must be silu; use another model")
    if config.get("quantization_config"):
        raise ModelRefused(path, "quantised weights are not supported; use the unquantised model")
    if _has_sliding_window(config):
        raise ModelRefused(
            path,
            "sliding-window attention is not supported; use a model that attends to its whole "
            "context (or lower max_position_embeddings to the window)",
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type"))
    if rope_type in _BATCH_DEPENDENT_ROPE:
        raise ModelRefused(
            path,
            f"rope type {rope_type!r} makes a sequence depend on the longest one of its batch; "
            "use a model with another rope type (default, linear, yarn, llama3)",
        )


def _has_sliding_window(config: Mapping[str, Any]) -> bool:
    if config["model_type"] == "mistral":
        window = config.get("sliding_window", _MISTRAL_SLIDING_WINDOW)
        return window is not None and window < config.get("max_position_embeddings", 0)
    return bool(config.get("use_sliding_window")) or "sliding_attention" in (
        config.get("layer_types") or ()
    )


def _default_head_dim(config: Mapping[str, Any]) -> int:
    if config["model_type"] == "qwen3":
        return _QWEN3_HEAD_DIM
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def _size(path: Path, config: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelRefused(path, f"{key} must be a positive integer; download the model anew")
    return value


def _eos_token_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    generation = _read_json(folder / GENERATION_CONFIG_NAME) or {}
    value = generation.get("eos_token_id", config.get("eos_token_id"))
    values = value if isinstance(value, list) else [value]
    return tuple(token_id for token_id in values if isinstance(token_id, int))
