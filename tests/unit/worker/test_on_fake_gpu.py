"""Steps on a GPU mix no tensors of the host into its own, and wait for nothing but results."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from anole_shared.settings import load
from anole_worker.core.step import History, Row, Sampling, Score, Step
from anole_worker.runtime import lora_triton, paged_attention
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.gpu_runner import GpuRunner
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.lora_table import make_table
from anole_worker.runtime.weights import load_model
from anole_worker.settings import WorkerSettings
from tests.unit.worker import gpu_cases
from tests.unit.worker.fake_gpu import GPU, Launched, faking, launching
from tests.unit.worker.tiny import adapter_of, load_adapter, make_adapter, make_model, row, step

ADAPTERS = ("all", "attention", "some")
HISTORY = History(token_ids=(5, 6, 7, 6), num_prompt_tokens=2)
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "drawn": Sampling(temperature=0.7),
    "narrowed": Sampling(temperature=1.0, top_p=0.9, top_k=3, min_p=0.1),
    "told": Sampling(temperature=1.0, logprobs=2),
    "penalised": Sampling(temperature=0, repetition_penalty=1.2, presence_penalty=0.5),
    "biased": Sampling(temperature=1.0, logit_bias=((3, 1.0), (5, -100.0))),
    "constrained": Sampling(temperature=0, grammar="any"),
}


class AnyToken(Grammars):
    """A grammar that allows everything."""

    def mask(self, row: Row) -> np.ndarray:
        return np.full(self._shape.vocab_size // 8, 255, dtype=np.uint8)


Kernels = dict[str, Launched]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernels]:
    attention = launching(monkeypatch, paged_attention, "store", "attend", "combine", "gather")
    lora = launching(monkeypatch, lora_triton, "shrink", "expand")
    has_cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    with faking(monkeypatch):
        yield attention | lora
    torch.backends.cuda.enable_cudnn_sdp(has_cudnn)


@pytest.fixture(params=["ordinary", "recorded"])
def gpu(request: pytest.FixtureRequest, launched: Kernels, tmp_path: Path) -> GpuRunner:
    model = make_model(tmp_path / "model", "qwen3", num_hidden_layers=2)
    weights = load_model(model, dtype=torch.bfloat16, device=GPU)
    recorder = gpu_cases.Same() if request.param == "recorded" else None
    settings = load(WorkerSettings, **gpu_cases.SETTINGS)
    return GpuRunner(weights, settings, AnyToken(model, weights.shape, max_held=1), recorder)


@pytest.fixture
def adapters(gpu: GpuRunner, tmp_path: Path) -> gpu_cases.Adapters:
    model, found = tmp_path / "model", {}
    for name in ADAPTERS:
        own: LoadedAdapter = load_adapter(make_adapter(tmp_path / name, model), model)
        copy = own.over(own.arena.to(GPU))
        copy.table = make_table(copy.layers, gpu.blocks.shape).to(GPU)
        found[adapter_of(name)] = copy
    return found


def with_choice(rows: tuple[Row, ...], choice: list[Sampling]) -> Step:
    """Rows that draw do it in these ways in turn; the others are scored."""
    found = []
    for index, own in enumerate(rows):
        if own.sampling is None:
            score = Score(token_ids=own.token_ids, num_top=2)
            found.append(replace(own, score=score))
        else:
            sampling = choice[index % len(choice)]
            found.append(
                replace(own, sampling=sampling, history=HISTORY, banned_token_ids=(2, 999))
            )
    return Step(rows=tuple(found))


def test_all_ways_to_draw_run_on_a_gpu(gpu: GpuRunner, adapters: gpu_cases.Adapters) -> None:
    gpu.warm_up()
    choices = [[one] for one in SAMPLINGS.values()]
    for choice in (*choices, list(SAMPLINGS.values())):
        for own in gpu_cases.steps():
            drawn = gpu.runner.run(with_choice(own.rows, choice), adapters)
            assert len(drawn) == len(own.rows)


def test_all_that_steps_launch_has_been_compiled_before_the_first(
    gpu: GpuRunner, launched: Kernels, adapters: gpu_cases.Adapters
) -> None:
    gpu.warm_up()
    assert gpu.blocks.num_with_memory == 0
    before = {name: set(kernel.variants) for name, kernel in launched.items()}
    for own in gpu_cases.steps():
        gpu.runner.run(own, adapters)
    for name, kernel in launched.items():
        assert before[name] == kernel.variants, name


def test_a_step_that_draws_nothing_is_waited_for(
    gpu: GpuRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[torch.device] = []
    stream = SimpleNamespace(synchronize=lambda: waits.append(GPU))
    monkeypatch.setattr(torch.cuda, "current_stream", {GPU: stream}.get)
    gpu.runner.run(step(row("r", [1, 2, 3], [0])), {})
    assert not waits, "the tokens' copy waits"
    gpu.runner.run(step(row("r", [1, 2, 3], [0], sampling=None)), {})
    assert waits == [GPU]


@pytest.mark.usefixtures("gpu")
def test_prompts_are_never_attended_to_by_cudnn() -> None:
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda own: own + torch.ones(3, 4), "same device", id="sum"),
        pytest.param(lambda own: own.index_select(0, torch.tensor([1])), "same device", id="rows"),
        pytest.param(lambda own: own[torch.tensor([1])], "same device", id="index"),
        pytest.param(lambda own: own.sum().item(), "_local_scalar_dense", id="number"),
        pytest.param(lambda own: bool(own.any()), "_local_scalar_dense", id="truth"),
        pytest.param(lambda own: own.numpy(), "numpy", id="numpy"),
    ],
)
def test_what_a_gpu_would_refuse_or_wait_for_is_found(
    call: Callable[[Tensor], object], says: str
) -> None:
    with pytest.raises(Exception, match=says):
        call(torch.zeros(3, 4, device=GPU))
