"""All layers in one compiled call give to the bit what the network gives loop by loop."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anole_shared.settings import load
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row
from anole_worker.runtime import cpu_layers, projection
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.compiled_layers import CompiledLayers
from anole_worker.runtime.cpu_batches import CpuBatches
from anole_worker.runtime.cpu_runner import CpuRunner
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.weights import ModelWeights, load_model
from anole_worker.settings import WorkerSettings
from tests.unit.worker.tiny import (
    ATTENTION,
    BLOCK_SIZE,
    FAMILY_FIELDS,
    adapter_of,
    load_adapter,
    make_adapter,
    make_model,
    no_grammars,
    row,
    step,
)

NUM_BLOCKS = 96
LENGTHS = [1, 2, 5, 9, 3, 12, 7, 4, 6]
NAMES = [None, "all", "all", "attention", None, "some", "all", "attention", "some"]
MODELS = {
    **{family: (family, {}) for family in FAMILY_FIELDS},
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
}


class Worker:
    """A model with a KV pool of its own."""

    def __init__(self, folder: Path, weights: ModelWeights) -> None:
        self.cache = KvCache(weights.shape, NUM_BLOCKS, BLOCK_SIZE, dtype=weights.dtype)
        self.batches = CpuBatches(weights, self.cache)
        self.runner = ModelRunner(weights, self.batches, no_grammars(folder))

    def is_whole(self, *rows: Row, adapters: dict[Adapter, LoadedAdapter]) -> bool:
        """Whether such a step runs in one call."""
        (batch,) = self.batches.make(step(*rows), adapters)
        return batch.layers is not None


@pytest.fixture(scope="module", params=MODELS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, fields = MODELS[request.param]
    found = tmp_path_factory.mktemp(request.param)
    make_model(found / "model", family, head_dim=64, **fields)
    make_adapter(found / "all", found / "model", rank=6, seed=1)
    make_adapter(found / "attention", found / "model", rank=16, targets=ATTENTION, seed=2)
    make_adapter(found / "some", found / "model", rank=3, targets=["v_proj", "up_proj"], seed=3)
    return found


@pytest.fixture(scope="module")
def weights(folder: Path) -> Iterator[ModelWeights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(projection, "_has_amx", lambda: False)
        yield load_model(folder / "model", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[Adapter, LoadedAdapter]:
    return {
        adapter_of(name): load_adapter(folder / name, folder / "model", torch.bfloat16)
        for name in ("all", "attention", "some")
    }


def test_one_call_gives_what_the_loops_give(
    folder: Path,
    weights: ModelWeights,
    adapters: dict[Adapter, LoadedAdapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, parted = Worker(folder / "model", weights), Worker(folder / "model", weights)
    monkeypatch.setattr(parted.batches, "_layers", None)
    assert whole.is_whole(*_rows(0), adapters=adapters)
    assert not parted.is_whole(*_rows(0), adapters=adapters)
    for worker in (whole, parted):
        worker.runner.run(step(*_prompts()), adapters)
    for turn in range(3):
        rows = _rows(turn)
        logits = whole.runner.logits(step(*rows), adapters)
        expected = parted.runner.logits(step(*rows), adapters)
        assert torch.equal(logits, expected)
        assert logits.isfinite().all()
        assert torch.equal(_kept(whole), _kept(parted))


def test_a_row_gets_the_same_in_any_company(
    folder: Path, weights: ModelWeights, adapters: dict[Adapter, LoadedAdapter]
) -> None:
    worker = Worker(folder / "model", weights)
    worker.runner.run(step(*_prompts()), adapters)
    rows = step(*_rows(0)).rows
    together = worker.runner.logits(step(*rows), adapters)
    for index in (0, 4, 8):
        alone = worker.runner.logits(step(rows[index]), adapters)
        assert torch.equal(alone[0], together[index])


def test_steps_with_prompts_run_in_one_call_as_well(
    folder: Path,
    weights: ModelWeights,
    adapters: dict[Adapter, LoadedAdapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And many rows of one adapter: all is as with the loops one by one."""
    whole, parted = Worker(folder / "model", weights), Worker(folder / "model", weights)
    prompts = [
        row("base", range(30), range(8)),
        row("long", [token % 128 for token in range(150)], range(20, 58), adapter="all"),
        *(row(str(index), [index], [64 + index], adapter="some") for index in range(20)),
    ]
    assert whole.is_whole(*prompts, adapters=adapters)
    logits = whole.runner.logits(step(*prompts), adapters)
    monkeypatch.setattr(parted.batches, "_layers", None)
    expected = parted.runner.logits(step(*prompts), adapters)
    assert torch.equal(logits, expected)
    assert torch.equal(_kept(whole), _kept(parted))


def test_a_worker_that_is_warm_compiles_nothing_more(
    folder: Path, weights: ModelWeights, adapters: dict[Adapter, LoadedAdapter]
) -> None:
    """Whether prompts or streams come, few or many, alone or shared by threads that meet."""
    settings = load(WorkerSettings, block_size=BLOCK_SIZE, step_threads=2, dtype="bfloat16")
    cpu = CpuRunner(weights, settings, no_grammars(folder / "model"), NUM_BLOCKS)
    cpu.warm_up()
    loops = [found for found in vars(cpu_layers).values() if hasattr(found, "signatures")]
    before = [sum(loop.stats.cache_misses.values()) for loop in loops]
    long = [token % 128 for token in range(70)]
    for rows in (
        [row("long", long, range(20, 58), adapter="all")],
        [row("base", [1], [0]), row("other", [2], [1], adapter="some")],
        _prompts(),
        _rows(0),
    ):
        cpu.runner.run(step(*rows), adapters)
    assert len(loops) > 5
    assert [sum(loop.stats.cache_misses.values()) for loop in loops] == before


def test_weights_that_onednn_keeps_do_not_fit(folder: Path) -> None:
    assert not CompiledLayers.known(load_model(folder / "model"))


def test_heads_of_an_uncommon_size_do_not_fit(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", head_dim=80)
    assert not CompiledLayers.known(load_model(folder, dtype=torch.bfloat16))


def _prompts() -> list[Row]:
    """All but the last tokens of each row's sequence, where there are some."""
    return [
        row(str(index), range(3, 3 + length - 1), _blocks(index), adapter=name, sampling=None)
        for index, (length, name) in enumerate(zip(LENGTHS, NAMES, strict=True))
        if length > 1
    ]


def _rows(turn: int) -> list[Row]:
    return [
        row(
            str(index),
            [(17 * index + turn) % 128],
            _blocks(index),
            start=length - 1 + turn,
            adapter=name,
        )
        for index, (length, name) in enumerate(zip(LENGTHS, NAMES, strict=True))
    ]


def _blocks(index: int) -> list[int]:
    return [60 - index, 2 * index, 2 * index + 1, 30 + index]


def _kept(worker: Worker) -> Tensor:
    return worker.cache.rows.float()
