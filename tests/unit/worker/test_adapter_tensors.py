import json
from pathlib import Path
from typing import Any

import pytest

from anole_worker.adapter_config import parse
from anole_worker.adapter_tensors import ModuleTensors, match_modules
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import MODULE_PATHS
from anole_worker.safetensors_header import TensorSpan
from tests.unit.worker.peft_folders import SHAPE, config, tensor_name, tensors

PATH = Path("adapters/x/adapter_model.safetensors")


def spans(**choice: Any) -> dict[str, TensorSpan]:
    return {
        name: TensorSpan(name=name, dtype="F32", shape=tensor.shape, begin=0, end=tensor.nbytes)
        for name, tensor in tensors(**choice).items()
    }


def matched(found: dict[str, TensorSpan], **fields: Any) -> tuple[ModuleTensors, ...]:
    adapter = parse(json.dumps(config(**fields)).encode(), PATH)
    return match_modules(found.values(), adapter, SHAPE, PATH)


def test_modules_come_by_layer_and_in_the_order_of_the_fused_projections() -> None:
    found = spans(modules=tuple(reversed(MODULE_PATHS)))
    modules = matched(found, target_modules="all-linear")
    assert [(m.layer, m.module) for m in modules] == [
        (layer, module) for layer in (0, 1) for module in MODULE_PATHS
    ]
    assert [m.site for m in modules[:7]] == [0, 0, 0, 1, 2, 2, 3]


def test_an_adapters_numbers_are_its_factors_and_no_more() -> None:
    modules = matched(spans())
    assert 4 * sum(m.num_weights for m in modules) == sum(t.nbytes for t in tensors().values())


def test_layers_and_ranks_may_differ() -> None:
    found = spans(layers=[1]) | {
        name: span for name, span in spans(rank=2, layers=[1]).items() if "v_proj" in name
    }
    modules = matched(found, layers_to_transform=[1], rank_pattern={"v_proj": 2})
    assert [(m.layer, m.rank, m.scale) for m in modules] == [(1, 4, 2), (1, 2, 4)]


def test_the_tensors_decide_where_the_targets_are_a_regular_expression() -> None:
    assert len(matched(spans(modules=["down_proj"]), target_modules=r".*down_proj")) == 2


def test_a_factor_without_its_partner_is_refused() -> None:
    for side in ("A", "B"):
        found = spans()
        del found[tensor_name(1, "v_proj", side)]
        with pytest.raises(AdapterRefused, match=rf"layers.1.self_attn.v_proj has no lora_{side}"):
            matched(found)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.bias",
        "base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight\n",
    ],
)
def test_a_tensor_that_is_not_understood_is_refused(name: str) -> None:
    odd = TensorSpan(name=name, dtype="F32", shape=(4, 32), begin=0, end=512)
    with pytest.raises(AdapterRefused, match="of no module that can be adapted"):
        matched({**spans(), name: odd})


def test_a_layer_that_the_base_model_lacks_is_refused() -> None:
    with pytest.raises(AdapterRefused, match="of a layer that the base model does not have"):
        matched(spans(layers=[0, 1, 2]))


def test_configuration_and_tensors_must_name_the_same_modules() -> None:
    with pytest.raises(AdapterRefused, match=r"names model.layers.0.self_attn.k_proj, of which"):
        matched(spans(), target_modules=["q_proj", "k_proj", "v_proj"])
    with pytest.raises(AdapterRefused, match=r"v_proj, which adapter_config.json does not name"):
        matched(spans(), target_modules=["q_proj"])


@pytest.mark.parametrize(("side", "shape"), [("A", (4, 33)), ("A", (5, 32)), ("B", (32,))])
def test_a_shape_that_does_not_fit_the_base_model_is_refused(
    side: str, shape: tuple[int, ...]
) -> None:
    name = tensor_name(0, "q_proj", side)
    odd = TensorSpan(name=name, dtype="F32", shape=shape, begin=0, end=0)
    with pytest.raises(AdapterRefused, match="it should be"):
        matched({**spans(), name: odd})


def test_a_rank_other_than_the_configured_one_is_refused() -> None:
    with pytest.raises(AdapterRefused, match=r"is \[8, 32\], it should be \[4, 32\]"):
        matched(spans(rank=8))


def test_an_adapter_of_nothing_is_refused() -> None:
    with pytest.raises(AdapterRefused, match="changes no module"):
        matched({}, target_modules=".*")
