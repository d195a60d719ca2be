"""Adapters to measure with: of random weights in every size, and the trained ones of examples/.

They lie in one folder, which a worker can serve: each size once, and many more names for the same
bytes on disk (hard links), since what the weights say does not matter and each name gets memory of
its own. They are stored in bfloat16, as most are, or in what a kind asks for. B is not zero, as
before a training, so that nothing could be skipped, and small, so that nothing overflows. The same
seed makes the same files.
"""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from anole_shared.ids import AdapterId
from anole_worker import adapter_files, model_shape
from anole_worker.adapter_files import AdapterFile
from anole_worker.model_shape import MODULE_PATHS, ModelShape
from bench.section import Plan, progress

ATTENTION = tuple(name for name, path in MODULE_PATHS.items() if path.startswith("self_attn"))
ALL_LINEAR = tuple(MODULE_PATHS)
RANKS = (8, 16, 32, 64, 128, 256)
MIXED_RANKS = (8, 16, 32, 64, 128)
NUM_MIXED = 64
TRAINED = Path(__file__).parents[1] / "examples" / "adapters"
_FILES = ("adapter_model.safetensors", "adapter_config.json")
_B_SCALE = 0.01


@dataclass(frozen=True, slots=True)
class Kind:
    """A size of adapter."""

    modules: str
    """attention or all."""
    rank: int
    stored: str = "bfloat16"
    """Its numbers' type in the file, as torch calls it."""

    @property
    def name(self) -> AdapterId:
        """Its folder's name."""
        suffix = "" if self.stored == "bfloat16" else f"-{self.stored}"
        return AdapterId(f"{self.modules}-{self.rank}{suffix}")

    @property
    def targets(self) -> tuple[str, ...]:
        return ATTENTION if self.modules == "attention" else ALL_LINEAR


KINDS = tuple(Kind(modules, rank) for modules in ("attention", "all") for rank in RANKS)


def mixed_name(index: int) -> AdapterId:
    """One of NUM_MIXED names for adapters of all linear modules, of MIXED_RANKS by turns."""
    return AdapterId(f"mixed-{index:02}")


def folder_of(plan: Plan) -> Path:
    """The folder with all KINDS, written where it is not there."""
    root = _root(plan)
    for kind in KINDS:
        _folder(plan, kind)
    for index, rank in zip(range(NUM_MIXED), itertools.cycle(MIXED_RANKS), strict=False):
        _link(root / Kind("all", rank).name, root / mixed_name(index))
    return root


def read(plan: Plan, kind: Kind) -> AdapterFile:
    """The adapter of this size, validated."""
    return adapter_files.read(_folder(plan, kind), model_shape.read(plan.model))


def read_mixed(plan: Plan, stored: str = "bfloat16") -> tuple[AdapterFile, ...]:
    """One for each of MIXED_RANKS, of all linear modules."""
    return tuple(read(plan, Kind("all", rank, stored)) for rank in MIXED_RANKS)


def read_trained(plan: Plan) -> tuple[AdapterFile, ...]:
    """Those of examples/, none where they were trained for another model."""
    files, _ = adapter_files.discover(TRAINED, model_shape.read(plan.model))
    return tuple(files)


def _root(plan: Plan) -> Path:
    return plan.work / f"adapters-{plan.model.name}"


def _folder(plan: Plan, kind: Kind) -> Path:
    """One adapter's folder, written where it is not there."""
    folder = _root(plan) / kind.name
    if not (folder / _FILES[-1]).exists():
        progress(f"    writing {folder}")
        seed = KINDS.index(Kind(kind.modules, kind.rank))
        _write(folder, model_shape.read(plan.model), kind, seed)
    return folder


def _write(folder: Path, shape: ModelShape, kind: Kind, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, kind.stored)
    dims = shape.module_dims
    tensors = {}
    for layer, module in itertools.product(range(shape.num_layers), kind.targets):
        inputs, outputs = dims[module]
        name = f"base_model.model.model.layers.{layer}.{MODULE_PATHS[module]}"
        a = torch.randn(kind.rank, inputs, generator=draw) * inputs**-0.5
        b = torch.randn(outputs, kind.rank, generator=draw) * _B_SCALE
        tensors[f"{name}.lora_A.weight"] = a.to(dtype)
        tensors[f"{name}.lora_B.weight"] = b.to(dtype)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": kind.rank,
        "lora_alpha": 2 * kind.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": list(kind.targets),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / _FILES[0])
    # Last: where the configuration is, the weights are whole.
    (folder / _FILES[1]).write_text(json.dumps(config, indent=2))


def _link(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in _FILES:
        if not (target / name).exists():
            os.link(source / name, target / name)
