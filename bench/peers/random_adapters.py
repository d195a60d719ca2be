"""Adapters of random weights, as PEFT saves them: for load, where what they say does not matter.

    python -m bench.peers.random_adapters FOLDER --model MODEL --ranks 8,8,16,16,32,32,64,64

They change all seven linear modules of each layer. B is not zero, as it is before a training, so
that an engine cannot get away with skipping it, and small, so that nothing overflows. The same
seed makes the same files.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RANKS = (8, 8, 16, 16, 32, 32, 64, 64)
_B_SCALE = 0.03


def module_dims(model: Path) -> tuple[int, dict[str, tuple[int, int]]]:
    """Number of layers, and inputs and outputs of each linear module by its path in a layer."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    queries = heads * head_dim
    keys = (config.get("num_key_value_heads") or heads) * head_dim
    inner = config["intermediate_size"]
    return config["num_hidden_layers"], {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def write(folder: Path, model: Path, rank: int, seed: int) -> None:
    """One adapter in a folder of its own."""
    num_layers, modules = module_dims(model)
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(num_layers):
        for path, (inputs, outputs) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{path}"
            a = torch.randn(rank, inputs, generator=draw) * inputs**-0.5
            b = torch.randn(outputs, rank, generator=draw) * _B_SCALE
            tensors[f"{name}.lora_A.weight"] = a.to(torch.bfloat16)
            tensors[f"{name}.lora_B.weight"] = b.to(torch.bfloat16)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(path.rpartition(".")[2] for path in modules),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))


def ensure(folder: Path, model: Path, ranks: Sequence[int]) -> tuple[str, ...]:
    """Write a0, a1, ... where they are missing; their names."""
    names = tuple(f"a{index}" for index in range(len(ranks)))
    for seed, (name, rank) in enumerate(zip(names, ranks, strict=True)):
        # The configuration is written last: where it is, the weights are whole.
        if not (folder / name / "adapter_config.json").exists():
            write(folder / name, model, rank, seed)
    return names


def main() -> None:
    """Write them and say where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument(
        "--ranks",
        default=",".join(map(str, RANKS)),
        help="one adapter for each of these, e.g. 8,16,64 (%(default)s)",
    )
    given = parser.parse_args()
    ranks = [int(rank) for rank in given.ranks.split(",")]
    print(f"{given.folder}: {', '.join(ensure(given.folder, given.model, ranks))}")


if __name__ == "__main__":
    main()
