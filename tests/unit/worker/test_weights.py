import json
import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from anole_worker import model_shape
from anole_worker.errors import ModelRefused
from anole_worker.runtime.weights import load_model
from tests.unit.worker.tiny import FAMILY_FIELDS, load_hf, make_model

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("family", FAMILY_FIELDS)
def test_the_shape_says_what_the_modules_really_are(tmp_path: Path, family: str) -> None:
    shape = model_shape.read(make_model(tmp_path, family))
    layer = load_hf(tmp_path).model.layers[0]
    for module, (num_in, num_out) in shape.module_dims.items():
        linear = layer.get_submodule(model_shape.MODULE_PATHS[module])
        assert linear.weight.shape == (num_out, num_in)


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    weights = load_model(make_model(tmp_path, "llama"))
    x = torch.randn(3, weights.shape.hidden_size)
    before = weights.head(x)
    weights.embedding.mul_(2)
    torch.testing.assert_close(weights.head(x), 2 * before)


def test_nothing_is_printed_and_the_settings_of_transformers_stay(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_model(tmp_path)
    transformers_logging.set_verbosity_info()
    transformers_logging.enable_progress_bar()
    capfd.readouterr()
    try:
        load_model(tmp_path)
        assert capfd.readouterr() == ("", "")
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()
        transformers_logging.disable_progress_bar()


def test_the_files_may_be_replaced_once_they_are_loaded(tmp_path: Path) -> None:
    """Nothing is mapped any more: a file that is cut short under a mapping kills its reader."""
    weights = load_model(make_model(tmp_path))
    os.truncate(tmp_path / WEIGHTS, 0)
    assert weights.embedding.isfinite().all()
    assert weights.head(weights.embedding).isfinite().all()


def test_weights_that_are_missing_are_named_and_not_made_up(tmp_path: Path) -> None:
    make_model(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelRefused, match=r"lack 1 weights, model.layers.1.mlp.up_proj.weight"):
        load_model(tmp_path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    os.truncate(tmp_path / WEIGHTS, 1000)
    with pytest.raises(ModelRefused, match="download the model anew"):
        load_model(tmp_path)


def test_a_model_of_another_size_than_its_configuration_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(ModelRefused, match="download the model anew"):
        load_model(tmp_path)


def test_a_pickled_model_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelRefused, match="with safetensors"):
        load_model(tmp_path)


def test_half_precision_is_what_the_caller_asks_for(tmp_path: Path) -> None:
    weights = load_model(make_model(tmp_path), dtype=torch.bfloat16)
    assert weights.dtype == torch.bfloat16
    assert weights.head(weights.embedding[:4]).dtype == torch.float32
