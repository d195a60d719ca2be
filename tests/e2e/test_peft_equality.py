"""The real model says with each adapter, token for token, what PEFT says: alone and in company."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, DynamicCache

from anole_worker import adapter_files, model_shape
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.cpu_batches import CpuBatches
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.packing import packing_on
from anole_worker.runtime.weights import load_model
from anole_worker.settings import WorkerSettings
from tests.unit.worker.tiny import (
    ALL_LINEAR,
    adapter_of,
    load_hf,
    load_peft,
    make_adapter,
    no_grammars,
    row,
    step,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MODEL = Path.home() / ".cache" / "anole" / "models" / "smollm2-135m-instruct"
TRAINED = Path(__file__).parents[2] / "examples" / "adapters"
QUESTIONS = ("How do I boil an egg?", "Why is the sky blue in the day and red at dusk?")
NUM_TOKENS = 64
BLOCK_SIZE = 16
BLOCKS_PER_ROW = 9

Case = tuple[str | None, int]
"""An adapter, or None for the base model, and the number of a question."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The trained examples, ranks 8 to 64, and random adapters of all modules."""
    if not (MODEL / "config.json").exists():
        pytest.fail(f"no base model at {MODEL}; `anole model` makes it")
    root = tmp_path_factory.mktemp("adapters")
    hf_model = load_hf(MODEL)
    random = [
        make_adapter(root / "random-r64-rslora", hf_model, rank=64, lora_alpha=16, std=0.02,
                     targets=ALL_LINEAR, use_rslora=True),
        make_adapter(root / "random-r16", hf_model, rank=16, std=0.04, targets="all-linear"),
        store(make_adapter(root / "random-bf16", hf_model, rank=12, std=0.04, lora_alpha=20,
                           targets=ALL_LINEAR, seed=1), torch.bfloat16),
        store(make_adapter(root / "random-f16", hf_model, rank=24, std=0.03, lora_alpha=28,
                           targets=ALL_LINEAR, seed=2), torch.float16),
    ]  # fmt: skip
    trained = [path.parent for path in TRAINED.glob("*/adapter_config.json")]
    return {folder.name: folder for folder in sorted(trained) + random}


def store(folder: Path, dtype: torch.dtype) -> Path:
    """Have the adapter's file hold numbers of that type."""
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    return folder


@pytest.fixture(scope="module")
def prompts(folders: dict[str, Path]) -> list[list[int]]:
    """The questions as token ids, cut to one length so that PEFT needs no padding for a batch."""
    assert folders
    tokenizer = AutoTokenizer.from_pretrained(MODEL, local_files_only=True)
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    length = min(len(chat) for chat in chats)
    return [list(chat[-length:]) for chat in chats]


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path], prompts: list[list[int]]) -> dict[Case, list[int]]:
    """PEFT's greedy answers, one adapter at a time."""
    first, *others = folders
    peft_model = load_peft(folders[first], MODEL, name=first)
    for name in others:
        peft_model.load_adapter(folders[name], name, low_cpu_mem_usage=True)
    peft_model.eval()
    answers: dict[Case, list[int]] = {}
    with peft_model.disable_adapter():
        answers.update({(None, n): answer for n, answer in enumerate(greedy(peft_model, prompts))})
    for name in folders:
        peft_model.set_adapter(name)
        answers.update({(name, n): answer for n, answer in enumerate(greedy(peft_model, prompts))})
    return answers


@torch.inference_mode()
def greedy(model: PeftModel, prompts: Sequence[list[int]]) -> list[list[int]]:
    cache, answers = DynamicCache(), []
    token_ids = torch.tensor(prompts)
    for _ in range(NUM_TOKENS):
        logits = model(input_ids=token_ids, past_key_values=cache, logits_to_keep=1).logits
        token_ids = logits[:, -1].argmax(dim=-1, keepdim=True)
        answers.append(token_ids)
    return torch.cat(answers, dim=1).tolist()


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="module")
def adapters(folders: dict[str, Path], device: torch.device) -> dict[Adapter, LoadedAdapter]:
    shape = model_shape.read(MODEL)
    files = [adapter_files.read(folder, shape) for folder in folders.values()]
    packing = packing_on(device, torch.float32)
    loaded = {
        adapter_of(file.adapter_id): load(file, bytearray(packing.num_bytes(file)), packing)
        for file in files
    }
    if device.type == "cpu":
        return loaded
    from anole_worker.runtime.upload import Uploader

    uploader = Uploader(shape, torch.cuda.default_stream(device))
    return {adapter: uploader.upload(own) for adapter, own in loaded.items()}


@pytest.fixture(scope="module")
def runner(device: torch.device) -> ModelRunner:
    weights = load_model(MODEL, device=device)
    if device.type == "cuda":
        from anole_worker.runtime.decode_graphs import CudaRecorder
        from anole_worker.runtime.gpu_runner import GpuRunner

        settings = WorkerSettings(block_size=BLOCK_SIZE)
        return GpuRunner(weights, settings, no_grammars(MODEL), CudaRecorder(device)).runner
    cache = KvCache(weights.shape, 20 * BLOCKS_PER_ROW, BLOCK_SIZE)
    return ModelRunner(weights, CpuBatches(weights, cache), no_grammars(MODEL))


class Stream:
    """One sequence that joins at a given step and takes its prompt in chunks of a given size."""

    def __init__(
        self, case: Case, prompt: list[int], index: int, *, joins: int, chunk: int
    ) -> None:
        self.case = case
        self.joins = joins
        self._prompt = prompt
        self._chunk = chunk
        self._tokens = list(prompt)
        self._done = 0
        self._blocks = [index + 20 * n for n in range(BLOCKS_PER_ROW)][::-1]

    @property
    def answer(self) -> list[int]:
        return self._tokens[len(self._prompt) :]

    def row(self) -> Row:
        new = self._tokens[self._done : self._done + self._chunk]
        is_last = self._done + len(new) == len(self._tokens)
        choice = {} if is_last else {"sampling": None}
        adapter, question = self.case
        name = f"{adapter} {question}"
        return row(name, new, self._blocks, start=self._done, adapter=adapter, **choice)

    def took(self, token_id: int | None) -> None:
        self._done = min(self._done + self._chunk, len(self._tokens))
        if token_id is not None:
            self._tokens.append(token_id)


def run_all(
    runner: ModelRunner, adapters: dict[Adapter, LoadedAdapter], streams: Sequence[Stream]
) -> None:
    number = 0
    while any(len(stream.answer) < NUM_TOKENS for stream in streams):
        running = [s for s in streams if s.joins <= number and len(s.answer) < NUM_TOKENS]
        running.sort(key=lambda stream: stream.case[0] or "")
        drawn = runner.run(step(*(stream.row() for stream in running)), adapters)
        for stream, found in zip(running, drawn, strict=True):
            stream.took(found.token_id)
        number += 1


def test_every_adapter_has_an_effect(expected: dict[Case, list[int]]) -> None:
    assert len(expected) >= 6
    for (name, question), answer in expected.items():
        assert name is None or answer != expected[None, question]


def test_a_sequence_alone_is_answered_as_peft_answers(
    runner: ModelRunner,
    adapters: dict[Adapter, LoadedAdapter],
    expected: dict[Case, list[int]],
    prompts: list[list[int]],
) -> None:
    for index, name in enumerate([None, *(adapter.adapter_id for adapter in adapters)][::2]):
        question = index % len(prompts)
        stream = Stream((name, question), prompts[question], 0, joins=0, chunk=1000)
        run_all(runner, adapters, [stream])
        assert stream.answer == expected[name, question], f"{name} differs from PEFT"


def test_sequences_of_all_adapters_together_are_answered_as_peft_answers(
    runner: ModelRunner,
    adapters: dict[Adapter, LoadedAdapter],
    expected: dict[Case, list[int]],
    prompts: list[list[int]],
) -> None:
    streams = [
        Stream(case, prompts[case[1]], index, joins=3 * index, chunk=7 + 30 * (index % 2))
        for index, case in enumerate(expected)
    ]
    run_all(runner, adapters, streams)
    for stream in streams:
        assert stream.answer == expected[stream.case], f"{stream.case} differs from PEFT"
