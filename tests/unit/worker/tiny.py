"""Tiny random models of every family, PEFT adapters for them, and steps over them."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from anole_shared.ids import AdapterId, RequestId
from anole_worker import adapter_files, model_shape
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.packing import packing_on

torch.set_num_threads(1)
disable_progress_bar()

GREEDY = Sampling(temperature=0, top_p=1, seed=0)
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION = ALL_LINEAR[:4]
BLOCK_SIZE = 4

SIZES = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
FAMILY_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": None, "tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"tie_word_embeddings": False},
}


def make_model(folder: Path, family: str = "llama", *, seed: int = 0, **fields: Any) -> Path:
    """Save a random model whose every weight matters, biases and norms too."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILY_FIELDS[family], **fields})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(std=0.5 if name.endswith("bias") else 0.2)
    model.save_pretrained(folder)
    return folder


def load_hf(folder: Path) -> PreTrainedModel:
    hf_model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    hf_model.eval()
    return hf_model


def make_adapter(
    folder: Path,
    model: Path | PreTrainedModel,
    *,
    rank: int = 8,
    targets: Sequence[str] | str = ALL_LINEAR,
    seed: int = 0,
    std: float = 0.2,
    **fields: Any,
) -> Path:
    """Save a random PEFT adapter that changes what the model says."""
    hf_model = load_hf(model) if isinstance(model, Path) else model
    config = LoraConfig(
        r=rank,
        lora_alpha=fields.pop("lora_alpha", 2 * rank),
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        **fields,
    )
    with _peft_warnings_ignored():
        peft_model = get_peft_model(hf_model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in peft_model.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=std, generator=generator)
    peft_model.save_pretrained(folder)
    peft_model.unload()
    return folder


def load_peft(folder: Path, model: Path, *, name: str = "default") -> PeftModel:
    with _peft_warnings_ignored():
        return PeftModel.from_pretrained(load_hf(model), folder, adapter_name=name).eval()


@contextmanager
def _peft_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def load_adapter(folder: Path, model: Path, dtype: torch.dtype = torch.float32) -> LoadedAdapter:
    """For a base model of that type."""
    file = adapter_files.read(folder, model_shape.read(model))
    packing = packing_on(torch.device("cpu"), dtype)
    return load(file, bytearray(packing.num_bytes(file)), packing)


def adapter_of(name: str) -> Adapter:
    """What the core calls an adapter of that name in these tests."""
    return Adapter(adapter_id=AdapterId(name), generation="", num_bytes=1, rank=1)


def no_grammars(model: Path) -> Grammars:
    """For runners whose rows have no grammar."""
    return Grammars(model, model_shape.read(model), max_held=1)


def row(
    name: str,
    token_ids: Sequence[int],
    blocks: Sequence[int],
    *,
    start: int = 0,
    adapter: str | None = None,
    sampling: Sampling | None = GREEDY,
) -> Row:
    return Row(
        request_id=RequestId(name),
        adapter=None if adapter is None else adapter_of(adapter),
        token_ids=tuple(token_ids),
        start=start,
        block_table=tuple(blocks),
        sampling=sampling,
    )


def step(*rows: Row) -> Step:
    """The rows in the order that a step must have."""
    return Step(
        rows=tuple(sorted(rows, key=lambda r: "" if r.adapter is None else r.adapter.adapter_id))
    )
