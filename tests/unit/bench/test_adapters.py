"""The adapters to measure with are such as a worker serves."""

import json
from pathlib import Path

import pytest

from anole_worker import adapter_files, model_shape
from bench import adapters
from bench.adapters import ALL_LINEAR, ATTENTION, KINDS, MIXED_RANKS, NUM_MIXED, Kind
from bench.section import Plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("bench")
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
        "max_position_embeddings": 64,
    }
    model = folder / "tiny"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    return Plan(model=model, work=folder / "work", rounds=1, is_quick=True)


def test_all_of_them_can_be_served(plan: Plan) -> None:
    shape = model_shape.read(plan.model)
    files, refused = adapter_files.discover(adapters.folder_of(plan), shape)
    assert refused == []
    assert len(files) == len(KINDS) + NUM_MIXED


def test_each_kind_has_its_rank_and_modules(plan: Plan) -> None:
    attention, everything = (adapters.read(plan, Kind(name, 16)) for name in ("attention", "all"))
    assert (attention.rank, attention.target_modules) == (16, ATTENTION)
    assert (everything.rank, everything.target_modules) == (16, ALL_LINEAR)


def test_ranks_come_by_turns_in_the_mix(plan: Plan) -> None:
    assert tuple(file.rank for file in adapters.read_mixed(plan)) == MIXED_RANKS


def test_a_kind_is_stored_in_the_type_that_it_asks_for(plan: Plan) -> None:
    found = {dtype: adapters.read_mixed(plan, dtype)[0] for dtype in ("float16", "float32")}
    assert [file.stored for file in found.values()] == ["F16", "F32"]
    assert adapters.read_mixed(plan)[0].stored == "BF16"
    assert len({file.path for file in found.values()}) == 2


def test_what_is_there_is_not_written_again(plan: Plan) -> None:
    def written() -> dict[Path, int]:
        root = adapters.folder_of(plan)
        return {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")}

    assert written() == written()
