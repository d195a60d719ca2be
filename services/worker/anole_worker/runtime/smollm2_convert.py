"""Turn the SmolLM2 GGUF file into a Hugging Face folder, and prove the weights afterwards.

The weights are streamed tensor by tensor, so that the conversion needs little memory and its
progress bar tells the truth: bytes written, then bytes read back and compared, then bytes hashed.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import pre_tokenizers
from tqdm import tqdm
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig
from transformers.utils import logging as transformers_logging

from anole_worker.runtime.smollm2_manifest import (
    MANIFEST,
    MANIFEST_FORMAT,
    MODEL_FILES,
    WEIGHTS,
    WHEEL,
    BaseModelError,
    file_sha256,
    header_sha256,
)

_LAYER_TENSORS = {
    "attn_k": "self_attn.k_proj",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
}
_TOP_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_LOADING_NOTES = {"is_local", "local_files_only"}
_PASSES = 3


def convert(source: Path, folder: Path, *, progress: bool) -> None:
    """Write the model in the GGUF file `source` into the empty `folder`, and verify it.

    Raises BaseModelError when the file lacks something or the written weights differ from it.
    """
    reader = GGUFReader(source)
    weights_bytes = sum(4 * int(tensor.n_elements) for tensor in reader.tensors)
    bar = tqdm(
        total=_PASSES * weights_bytes,
        unit="B",
        unit_scale=True,
        disable=not progress,
        mininterval=0.5,
    )
    with bar:
        bar.set_description("base model: reading the tokenizer")
        _write_tokenizer(source, folder, context_length=_count(reader, "llama.context_length"))
        _write_configs(reader, folder)
        bar.set_description("base model: converting")
        _write_weights(reader, folder / WEIGHTS, bar)
        bar.set_description("base model: verifying")
        _verify_weights(reader, folder / WEIGHTS, bar)
        bar.set_description("base model: hashing")
        _write_manifest(source, folder)
        bar.update(weights_bytes)
        bar.set_description("base model: ready")


def _write_tokenizer(source: Path, folder: Path, *, context_length: int) -> None:
    with _quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(
            str(source.parent), gguf_file=source.name, local_files_only=True
        )
    # The file asks for the "smollm" splitting rule, each digit by itself before the GPT-2 rule,
    # which transformers does not take over: a blank line before a digit would split differently.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = context_length
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_bytes())
    _write_json(path, {key: settings[key] for key in settings if key not in _LOADING_NOTES})


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _write_configs(reader: GGUFReader, folder: Path) -> None:
    start = _count(reader, "tokenizer.ggml.bos_token_id")
    end = _count(reader, "tokenizer.ggml.eos_token_id")
    pad = _count(reader, "tokenizer.ggml.padding_token_id")
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        hidden_size=_count(reader, "llama.embedding_length"),
        intermediate_size=_count(reader, "llama.feed_forward_length"),
        max_position_embeddings=_count(reader, "llama.context_length"),
        num_attention_heads=_count(reader, "llama.attention.head_count"),
        num_hidden_layers=_count(reader, "llama.block_count"),
        num_key_value_heads=_count(reader, "llama.attention.head_count_kv"),
        rms_norm_eps=_number(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": _number(reader, "llama.rope.freq_base"),
        },
        tie_word_embeddings=True,
        vocab_size=_count(reader, "llama.vocab_size"),
        dtype="float32",
    ).save_pretrained(folder)
    # <|endoftext|>, the vocabulary's "unknown" token, ends a text as well.
    ends = [end, _count(reader, "tokenizer.ggml.unknown_token_id")]
    generation = GenerationConfig(bos_token_id=start, eos_token_id=ends, pad_token_id=pad)
    generation.save_pretrained(folder)


def _number(reader: GGUFReader, name: str) -> float:
    field = reader.get_field(name)
    if field is None:
        raise BaseModelError(
            f"the model file lacks {name}; reinstall it: "
            f"pip install --no-deps --force-reinstall {WHEEL}"
        )
    return float(field.contents())


def _count(reader: GGUFReader, name: str) -> int:
    return int(_number(reader, name))


def _name(gguf_name: str) -> str:
    """The Hugging Face name of a GGUF tensor such as blk.0.attn_q.weight."""
    *layer, kind, suffix = gguf_name.split(".")
    if layer:
        return f"model.layers.{layer[1]}.{_LAYER_TENSORS[kind]}.{suffix}"
    return f"{_TOP_TENSORS[kind]}.{suffix}"


def _tensors(reader: GGUFReader) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Every tensor in fp32 under its Hugging Face name, one at a time, in the file's order."""
    heads = {
        "attn_q": _count(reader, "llama.attention.head_count"),
        "attn_k": _count(reader, "llama.attention.head_count_kv"),
    }
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            # GGUF keeps the two numbers of a rotary pair side by side; Hugging Face keeps the
            # first ones of a head in its first half and the second ones in its second half.
            paired = values.reshape(heads[kind], -1, 2, values.shape[-1])
            values = paired.swapaxes(1, 2).reshape(values.shape)
        yield _name(tensor.name), np.ascontiguousarray(values, dtype=np.float32)


def _write_weights(reader: GGUFReader, path: Path, bar: "tqdm[Any]") -> None:
    """Stream the tensors into one safetensors file: a JSON header, then the values in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in reader.tensors:
        end = offset + 4 * int(tensor.n_elements)
        shape = [int(size) for size in reversed(tensor.shape)]
        header[_name(tensor.name)] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in _tensors(reader):
            file.write(values.data)
            bar.update(values.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _verify_weights(reader: GGUFReader, path: Path, bar: "tqdm[Any]") -> None:
    """Read the file back with the safetensors library: each tensor must equal its source."""
    with safe_open(path, framework="np") as written:
        for name, values in _tensors(reader):
            if not np.array_equal(written.get_tensor(name), values):
                raise BaseModelError(
                    f"{name} in {path} differs from its source after writing; "
                    "check the disk and start again"
                )
            bar.update(values.nbytes)


def _write_manifest(source: Path, folder: Path) -> None:
    paths = [folder / name for name in MODEL_FILES]
    manifest = {
        "format": MANIFEST_FORMAT,
        "source": {"package": WHEEL, "file": source.name, "sha256": file_sha256(source)},
        "files": {
            path.name: {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in paths
        },
        "weights_header_sha256": header_sha256(folder / WEIGHTS),
    }
    _write_json(folder / MANIFEST, manifest)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
