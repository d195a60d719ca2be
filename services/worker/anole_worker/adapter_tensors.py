"""Which low-rank factor of which module each tensor of an adapter is."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from anole_worker.adapter_config import AdapterConfig, module_path
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import MODULE_PATHS, SITES, ModelShape
from anole_worker.safetensors_header import TensorSpan

_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>0|[1-9][0-9]{0,5})\.(?P<path>[a-z_.]+)"
    r"\.lora_(?P<side>[AB])\.weight"
)
_MODULE_AT = {path: module for module, path in MODULE_PATHS.items()}
_SITE_OF = {module: site for site, modules in enumerate(SITES) for module in modules}
_ORDER = {module: index for index, module in enumerate(MODULE_PATHS)}

_Factors = dict[str, TensorSpan]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTensors:
    """One module's two factors in the file: a is [rank, in], b is [out, rank]."""

    layer: int
    module: str
    rank: int
    scale: float
    a: TensorSpan
    b: TensorSpan

    @property
    def site(self) -> int:
        """Which of a layer's fused projections the module is part of: an index into SITES."""
        return _SITE_OF[self.module]

    @property
    def num_weights(self) -> int:
        """Numbers in both factors."""
        return self.rank * (self.a.shape[1] + self.b.shape[0])


def match_modules(
    spans: Iterable[TensorSpan], config: AdapterConfig, shape: ModelShape, path: Path
) -> tuple[ModuleTensors, ...]:
    """Pair the tensors up, by layer and then in the order of SITES.

    Raises AdapterRefused, naming `path`, when a tensor is not understood, is missing, has another
    shape than the base model asks for, or is of a module that the configuration does not name.
    """
    factors = _factors(spans, shape, path)
    targets = config.targets(shape)
    if targets is not None:
        _check_targets(factors.keys(), targets, path)
    if not factors:
        raise AdapterRefused(path, "it changes no module of this base model; train it for this one")
    return tuple(
        _module(key, factors[key], config, shape, path)
        for key in sorted(factors, key=lambda key: (key[0], _ORDER[key[1]]))
    )


def _factors(
    spans: Iterable[TensorSpan], shape: ModelShape, path: Path
) -> dict[tuple[int, str], _Factors]:
    factors: dict[tuple[int, str], _Factors] = {}
    for span in spans:
        match = _NAME.fullmatch(span.name)
        module = _MODULE_AT.get(match["path"]) if match else None
        if match is None or module is None:
            raise AdapterRefused(
                path,
                f"tensor {span.name!r} is of no module that can be adapted here; train with some "
                f"of {', '.join(MODULE_PATHS)} as target_modules",
            )
        layer = int(match["layer"])
        if layer >= shape.num_layers:
            raise AdapterRefused(
                path,
                f"tensor {span.name!r} is of a layer that the base model does not have; use an "
                "adapter that was trained for this base model",
            )
        factors.setdefault((layer, module), {})[match["side"]] = span
    return factors


def _check_targets(
    found: Iterable[tuple[int, str]], targets: frozenset[tuple[int, str]], path: Path
) -> None:
    for layer, module in sorted(targets.symmetric_difference(found)):
        name = module_path(layer, module)
        if (layer, module) in targets:
            fault = f"adapter_config.json names {name}, of which it has no tensors"
        else:
            fault = f"it has tensors of {name}, which adapter_config.json does not name"
        raise AdapterRefused(path, f"{fault}; save the adapter again")


def _module(
    key: tuple[int, str], factors: _Factors, config: AdapterConfig, shape: ModelShape, path: Path
) -> ModuleTensors:
    layer, module = key
    name = module_path(layer, module)
    for side in ("A", "B"):
        if side not in factors:
            raise AdapterRefused(path, f"{name} has no lora_{side}; save the adapter again")
    rank = config.rank_of(name)
    num_in, num_out = shape.module_dims[module]
    for span, expected in ((factors["A"], (rank, num_in)), (factors["B"], (num_out, rank))):
        if span.shape != expected:
            raise AdapterRefused(
                path,
                f"{span.name} is {list(span.shape)}, it should be {list(expected)}; use an "
                "adapter that was trained for this base model, with its own adapter_config.json",
            )
    return ModuleTensors(
        layer=layer,
        module=module,
        rank=rank,
        scale=config.scale_of(name),
        a=factors["A"],
        b=factors["B"],
    )
