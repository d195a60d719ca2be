"""What an adapter's adapter_config.json asks for, and what of it the runner does not do.

Fields and meaning: PEFT's LoraConfig. Nothing in the file is run as a regular expression, though
PEFT would: whoever writes an adapter could make one that never ends.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import MODULE_PATHS, ModelShape

CONFIG_NAME = "adapter_config.json"
MAX_RANK = 256

_MAX_ALPHA = 1_000_000
_Number = TypeVar("_Number", int, float)

_ALL_LINEAR = "all-linear"
_PATTERN = re.compile(r"\^?[\w.]+", re.ASCII)

_NEUTRAL_FIELDS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Of no effect on what a finished adapter computes; the sizes are checked against the tensors."""

_READ_FIELDS = frozenset(
    {
        "alpha_pattern",
        "bias",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)

_ADDITIVE_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base model's own weights alone."""

_REMEDIES = {
    "use_dora": "DoRA is not supported; train with use_dora=False, or merge the adapter",
    "modules_to_save": "whole modules cannot be replaced; train with modules_to_save=None",
    "lora_bias": "biases are not supported; train with lora_bias=False",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """An adapter's ranks and scales, and which modules it says it changes."""

    rank: int
    alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | None
    """Module names or ends of their paths. None: whichever the tensors are of."""
    layers: frozenset[int] | None
    """None: all layers."""

    def rank_of(self, path: str) -> int:
        """The rank at a module, given by its whole path such as model.layers.0.mlp.up_proj."""
        return _first(self.rank_pattern, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What the module's low-rank product is multiplied with."""
        alpha, rank = _first(self.alpha_pattern, path, self.alpha), self.rank_of(path)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, shape: ModelShape) -> frozenset[tuple[int, str]] | None:
        """The layers and modules that it must have tensors for; None where it does not say."""
        if self.target_modules is None:
            return None
        return frozenset(
            (layer, module)
            for layer in range(shape.num_layers)
            if self.layers is None or layer in self.layers
            for module in MODULE_PATHS
            if any(_ends_with(module_path(layer, module), name) for name in self.target_modules)
        )


def module_path(layer: int, module: str) -> str:
    """A module's path inside the model, as PEFT names it."""
    return f"model.layers.{layer}.{MODULE_PATHS[module]}"


def _ends_with(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _first(pattern: Mapping[str, _Number], path: str, default: _Number) -> _Number:
    for name, value in pattern.items():
        if path == name[1:] if name.startswith("^") else _ends_with(path, name):
            return value
    return default


def parse(data: bytes, path: Path) -> AdapterConfig:
    """Read adapter_config.json's content.

    Raises AdapterRefused, naming `path`, for what is broken and for what the runner cannot do.
    """
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(path, f"it is no JSON ({error}); save the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterRefused(path, "it is no JSON object; save the adapter again")
    _check_supported(config, path)
    return AdapterConfig(
        rank=_rank(config.get("r"), "r", path),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha", path),
        use_rslora=bool(config.get("use_rslora")),
        rank_pattern={
            name: _rank(value, "rank_pattern", path)
            for name, value in _pattern(config, "rank_pattern", path).items()
        },
        alpha_pattern={
            name: _alpha(value, "alpha_pattern", path)
            for name, value in _pattern(config, "alpha_pattern", path).items()
        },
        target_modules=_target_modules(config.get("target_modules"), path),
        layers=_layers(config, path),
    )


def _check_supported(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterRefused(
            path, f"peft_type is {config.get('peft_type')!r}; only LORA adapters can be served"
        )
    if config.get("bias", "none") != "none":
        raise AdapterRefused(path, "biases are not supported; train with bias='none'")
    init = config.get("init_lora_weights")
    if init not in _ADDITIVE_INITS:
        raise AdapterRefused(
            path,
            f"init_lora_weights {init!r} changes the base model; convert the adapter to plain "
            "LoRA with PEFT's path_initial_model_for_weight_conversion and set it to true",
        )
    for field, value in config.items():
        if value and field not in _NEUTRAL_FIELDS and field not in _READ_FIELDS:
            remedy = _REMEDIES.get(field, "the runner does not know it; train without it")
            raise AdapterRefused(path, f"{field} is set: {remedy}")


def _rank(value: object, field: str, path: Path) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise AdapterRefused(
            path, f"{field}: {value!r} is no rank from 1 to {MAX_RANK}; train with such a rank"
        )
    return value


def _alpha(value: object, field: str, path: Path) -> float:
    if (type(value) is int or type(value) is float) and abs(value) <= _MAX_ALPHA:
        return float(value)
    raise AdapterRefused(path, f"{field}: {value!r} is no number up to {_MAX_ALPHA}; correct it")


def _pattern(config: Mapping[str, Any], field: str, path: Path) -> Mapping[str, Any]:
    pattern = config.get(field) or {}
    if not isinstance(pattern, dict):
        raise AdapterRefused(path, f"{field} is no object; save the adapter again")
    for name in pattern:
        if not _PATTERN.fullmatch(name):
            raise AdapterRefused(
                path,
                f"{field}: {name!r} is a regular expression; write out the modules it stands for",
            )
    return pattern


def _target_modules(value: object, path: Path) -> tuple[str, ...] | None:
    if value == _ALL_LINEAR:
        return tuple(MODULE_PATHS)
    if isinstance(value, str):
        return None
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise AdapterRefused(path, "target_modules names no modules; save the adapter again")
    for name in value:
        if name.rpartition(".")[2] not in MODULE_PATHS:
            raise AdapterRefused(
                path,
                f"target module {name!r} is not supported; train with some of "
                f"{', '.join(MODULE_PATHS)}",
            )
    return tuple(value)


def _layers(config: Mapping[str, Any], path: Path) -> frozenset[int] | None:
    if config.get("layers_pattern") not in (None, "", "layers", [], ["layers"]):
        raise AdapterRefused(path, "layers_pattern must be layers; correct or remove it")
    value = config.get("layers_to_transform")
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if not all(type(layer) is int for layer in layers):
        raise AdapterRefused(path, "layers_to_transform must be layer numbers; correct it")
    return frozenset(layers)
