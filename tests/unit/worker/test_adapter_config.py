import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from anole_worker.adapter_config import AdapterConfig, module_path, parse
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import MODULE_PATHS
from tests.unit.worker.peft_folders import SHAPE, config

PATH = Path("adapters/x/adapter_config.json")


def parsed(**fields: Any) -> AdapterConfig:
    return parse(json.dumps(config(**fields)).encode(), PATH)


def test_the_scale_is_alpha_by_rank_or_by_its_root() -> None:
    path = module_path(0, "q_proj")
    assert parsed(r=4, lora_alpha=8).scale_of(path) == 2
    assert parsed(r=4, lora_alpha=8, use_rslora=True).scale_of(path) == 4
    assert parsed(r=8, lora_alpha=8.0, use_rslora=True).scale_of(path) == 8 / math.sqrt(8)


def test_patterns_give_single_modules_another_rank_and_alpha() -> None:
    adapter = parsed(
        r=4,
        lora_alpha=8,
        rank_pattern={"layers.1.self_attn.q_proj": 2, "v_proj": 16},
        alpha_pattern={"^model.layers.0.self_attn.v_proj": 64, "^v_proj": 1},
    )
    assert adapter.rank_of(module_path(0, "q_proj")) == 4
    assert adapter.rank_of(module_path(1, "q_proj")) == 2
    assert adapter.scale_of(module_path(1, "q_proj")) == 4
    assert adapter.scale_of(module_path(0, "v_proj")) == 4
    assert adapter.scale_of(module_path(1, "v_proj")) == 0.5


def test_a_pattern_matches_whole_names_and_the_first_one_counts() -> None:
    adapter = parsed(rank_pattern={"j_proj": 1, "self_attn.q_proj": 2, "q_proj": 3})
    assert adapter.rank_of(module_path(0, "q_proj")) == 2
    assert adapter.rank_of(module_path(0, "k_proj")) == 4


def test_targets_are_the_named_modules_of_the_named_layers() -> None:
    one_layer = parsed(layers_to_transform=1, layers_pattern="layers")
    one_module = parsed(target_modules=["0.self_attn.q_proj"])
    assert parsed().targets(SHAPE) == frozenset(product((0, 1), ("q_proj", "v_proj")))
    assert one_layer.targets(SHAPE) == frozenset(product((1,), ("q_proj", "v_proj")))
    assert one_module.targets(SHAPE) == frozenset({(0, "q_proj")})


def test_all_linear_targets_every_module() -> None:
    targets = parsed(target_modules="all-linear").targets(SHAPE)
    assert targets == frozenset(product((0, 1), MODULE_PATHS))


def test_a_regular_expression_for_targets_is_not_run() -> None:
    assert parsed(target_modules=".*(q|v)_proj").targets(SHAPE) is None


def test_fields_of_other_versions_are_fine_while_they_are_off() -> None:
    assert parsed(use_next_big_thing=False, next_big_config=None, next_list=[]).rank == 4


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"peft_type": None}, "only LORA"),
        ({"bias": "all"}, "bias='none'"),
        ({"bias": "lora_only"}, "bias='none'"),
        ({"use_dora": True}, "DoRA is not supported"),
        ({"lora_bias": True}, "lora_bias=False"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=None"),
        ({"use_qalora": True}, "use_qalora is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules is set"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"use_next_big_thing": True}, "use_next_big_thing is set"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"init_lora_weights": ["pissa"]}, "changes the base model"),
        ({"r": 0}, "rank from 1 to 256"),
        ({"r": 257}, "rank from 1 to 256"),
        ({"r": "8"}, "rank from 1 to 256"),
        ({"r": True}, "rank from 1 to 256"),
        ({"r": None}, "rank from 1 to 256"),
        ({"rank_pattern": {"q_proj": 300}}, "rank_pattern: 300"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is no object"),
        ({"rank_pattern": {"(a+)+b": 4}}, "regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern: 'x'"),
        ({"lora_alpha": None}, "lora_alpha: None"),
        ({"lora_alpha": math.nan}, "lora_alpha: nan"),
        ({"lora_alpha": 10**400}, "lora_alpha: 1000"),
        ({"lora_alpha": -math.inf}, "lora_alpha: -inf"),
        ({"target_modules": None}, "names no modules"),
        ({"target_modules": []}, "names no modules"),
        ({"target_modules": [1]}, "names no modules"),
        ({"target_modules": ["q_proj", "lm_head"]}, "'lm_head' is not supported; train with some"),
        ({"target_modules": ["embed_tokens"]}, "'embed_tokens' is not supported"),
        ({"layers_to_transform": "1"}, "layer numbers"),
        ({"layers_to_transform": [0], "layers_pattern": "h"}, "layers_pattern"),
    ],
)
def test_what_the_runner_cannot_do_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(AdapterRefused, match=reason) as error:
        parsed(**fields)
    assert str(PATH) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'"LORA"'])
def test_a_broken_configuration_is_refused(content: bytes) -> None:
    with pytest.raises(AdapterRefused, match="no JSON"):
        parse(content, PATH)
