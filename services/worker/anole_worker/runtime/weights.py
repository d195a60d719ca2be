"""The base model's weights: loaded by transformers, then packed as the runner wants them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from anole_worker import model_shape
from anole_worker.errors import ModelRefused
from anole_worker.model_shape import (
    DOWN,
    GATE_UP,
    MODULE_PATHS,
    OUTPUT,
    QKV,
    SITES,
    ModelShape,
)
from anole_worker.runtime.projection import Head, Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer; its linear modules are fused into the four SITES."""

    attention_norm: Tensor
    qkv: Projection
    qk_norm: Tensor | None
    """[heads + kv_heads, head_dim]: the norms of queries and keys, where the family has them."""
    output: Projection
    mlp_norm: Tensor
    gate_up: Projection
    down: Projection

    @property
    def projections(self) -> tuple[Projection, ...]:
        """By SITES."""
        return self.qkv, self.output, self.gate_up, self.down


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWeights:
    """A whole model, ready to run."""

    shape: ModelShape
    embedding: Tensor
    """[vocab, hidden]"""
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Head
    rotary: nn.Module
    """(x, positions [1, tokens]) -> cos and sin, each [1, tokens, head_dim] in x's dtype."""
    norm_eps: float

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the KV cache and of all that is computed."""
        return self.embedding.dtype


CPU = torch.device("cpu")


@torch.no_grad()
def load_model(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> ModelWeights:
    """Load a Hugging Face model folder and pack it, layer by layer, on the device.

    Takes memory for the weights once and for one layer more: transformers maps the files, and what
    it has made of a layer is freed as soon as the layer is packed. (With dtypes that differ from
    the files' own, it is twice the weights, in host memory.) Nothing is fetched and no code of the
    folder is run.

    Raises ModelRefused when the folder holds no model, a broken one or one of another family.
    """
    shape = model_shape.read(folder)
    hf_model = _load_hf_model(folder, dtype)
    norm_eps = float(hf_model.config.rms_norm_eps)
    rotary = hf_model.get_submodule("model.rotary_emb")
    weights: dict[str, Tensor] = hf_model.state_dict()
    del hf_model
    probe = rotary(weights["model.norm.weight"], torch.zeros(1, 1, dtype=torch.long))
    if probe[0].shape[-1] != shape.head_dim:
        raise ModelRefused(folder, "its rotary embedding is partial; use another model")
    layers = tuple(_take_layer(weights, index, shape, device) for index in range(shape.num_layers))
    head, source = weights.pop("lm_head.weight"), weights.pop("model.embed_tokens.weight")
    is_tied = head.data_ptr() == source.data_ptr()
    embedding = _taken(source, device)
    return ModelWeights(
        shape=shape,
        embedding=embedding,
        layers=layers,
        final_norm=_norm(weights.pop("model.norm.weight"), device),
        head=Head(embedding if is_tied else _taken(head, device)),
        rotary=rotary.to(device),
        norm_eps=norm_eps,
    )


def _load_hf_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with _quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelRefused(
            folder, f"it cannot be loaded ({error}); download the model anew, with safetensors"
        ) from error
    hf_model: PreTrainedModel = loaded[0]
    missing: list[str] = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelRefused(
            folder,
            f"its files lack {len(missing)} weights, {missing[0]} among them; download the model "
            "anew",
        )
    return hf_model


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()


def _take_layer(
    weights: dict[str, Tensor], index: int, shape: ModelShape, device: torch.device
) -> LayerWeights:
    """Pack a layer and drop its weights from the dictionary, which is the last to hold them."""
    prefix = f"model.layers.{index}."
    own = {
        name.removeprefix(prefix): weights.pop(name)
        for name in list(weights)
        if name.startswith(prefix)
    }
    qk_norm = None
    if "self_attn.q_norm.weight" in own:
        queries = own["self_attn.q_norm.weight"].expand(shape.num_heads, -1)
        keys = own["self_attn.k_norm.weight"].expand(shape.num_kv_heads, -1)
        qk_norm = torch.cat((queries, keys)).to(device)
    return LayerWeights(
        attention_norm=_norm(own["input_layernorm.weight"], device),
        qkv=_fuse(own, QKV, device),
        qk_norm=qk_norm,
        output=_fuse(own, OUTPUT, device),
        mlp_norm=_norm(own["post_attention_layernorm.weight"], device),
        gate_up=_fuse(own, GATE_UP, device),
        down=_fuse(own, DOWN, device),
    )


def _fuse(layer: Mapping[str, Tensor], site: int, device: torch.device) -> Projection:
    paths = [MODULE_PATHS[module] for module in SITES[site]]
    weight = torch.cat([layer[f"{path}.weight"].to(device) for path in paths])
    biases = [layer[f"{path}.bias"].to(device) for path in paths if f"{path}.bias" in layer]
    return Projection(weight, torch.cat(biases) if biases else None)


def _taken(weight: Tensor, device: torch.device) -> Tensor:
    """A copy on the device: what was mapped from a file can go."""
    return weight.to(device, copy=True)


def _norm(weight: Tensor, device: torch.device) -> Tensor:
    """A norm's weights; wide on a GPU, where narrow ones would be widened at every step."""
    taken = _taken(weight, device)
    return taken if device.type == "cpu" else taken.float()


def preferred_dtype(device: torch.device = CPU) -> torch.dtype:
    """bfloat16 where it was seen to be faster, else float32.

    So it is on GPUs that multiply it, and on processors with AVX2 or more, whose loops widen it
    where the processor does not multiply it.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    is_fast = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    return torch.bfloat16 if is_fast else torch.float32
