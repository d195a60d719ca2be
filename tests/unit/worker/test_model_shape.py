import json
from pathlib import Path
from typing import Any

import pytest

from anole_worker import model_shape
from anole_worker.errors import ModelRefused

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
}


def write(folder: Path, **fields: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    return folder


def test_the_head_size_follows_from_the_hidden_size_where_it_is_not_given(tmp_path: Path) -> None:
    assert model_shape.read(write(tmp_path)).head_dim == 8
    assert model_shape.read(write(tmp_path, head_dim=16)).head_dim == 16


def test_qwen3_has_its_own_default_head_size(tmp_path: Path) -> None:
    assert model_shape.read(write(tmp_path, model_type="qwen3")).head_dim == 128


def test_every_query_head_has_its_own_keys_where_no_number_is_given(tmp_path: Path) -> None:
    assert model_shape.read(write(tmp_path, num_key_value_heads=None)).num_kv_heads == 4


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, (2,)), ({"eos_token_id": [7, 8]}, (7, 8)), ({"eos_token_id": 9}, (9,)), ({}, (2,))],
)
def test_the_generation_config_says_what_ends_a_sequence(
    tmp_path: Path, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    write(tmp_path)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert model_shape.read(tmp_path).eos_token_ids == expected


def test_columns_are_where_a_module_is_in_its_fused_projection(tmp_path: Path) -> None:
    shape = model_shape.read(write(tmp_path))
    assert shape.columns("q_proj") == slice(0, 32)
    assert shape.columns("k_proj") == slice(32, 48)
    assert shape.columns("v_proj") == slice(48, 64)
    assert shape.columns("up_proj") == slice(64, 128)
    assert shape.columns("down_proj") == slice(0, 32)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": "gemma3"}, "use one of llama, mistral, qwen2, qwen3"),
        ({"model_type": "mistral"}, "sliding-window"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding-window"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "sliding-window"),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"]}, "sliding-window"),
        ({"hidden_act": "gelu"}, "silu"),
        ({"quantization_config": {"bits": 4}}, "quantised"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope'"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_hidden_layers": "12"}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_a_model_that_the_runner_cannot_run_is_refused(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    fields = {"max_position_embeddings": 8192, **fields}
    with pytest.raises(ModelRefused, match=reason):
        model_shape.read(write(tmp_path, **fields))


@pytest.mark.parametrize("window", [None, 8192])
def test_a_window_that_is_never_left_is_none(tmp_path: Path, window: int | None) -> None:
    write(tmp_path, model_type="mistral", sliding_window=window, max_position_embeddings=8192)
    assert model_shape.read(tmp_path).family == "mistral"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="is missing"):
        model_shape.read(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelRefused, match="download the model anew"):
        model_shape.read(tmp_path)
