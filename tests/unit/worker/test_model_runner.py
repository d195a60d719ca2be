from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Sampling, Score, TokenLogprobs
from anole_worker.runtime import cpu_batches, crew
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.cpu_batches import CpuBatches
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.weights import load_model
from tests.unit.worker.tiny import (
    ATTENTION,
    BLOCK_SIZE,
    FAMILY_FIELDS,
    GREEDY,
    adapter_of,
    load_adapter,
    load_hf,
    load_peft,
    make_adapter,
    make_model,
    no_grammars,
    row,
    step,
)

TOLERANCE = {"rtol": 0, "atol": 5e-4}
SHUFFLED = [11, 3, 29, 7, 2, 17, 23, 5]
OTHERS = [[0, 31, 1, 30], [13, 12, 14, 10], [20, 25, 21, 26]]


@dataclass
class Model:
    folder: Path
    runner: ModelRunner
    adapters: dict[Adapter, LoadedAdapter]
    oracles: dict[str | None, torch.nn.Module]

    def logits(self, *rows: Row) -> Tensor:
        return self.runner.logits(step(*rows), self.adapters)

    def run(self, *rows: Row) -> list[int | None]:
        return [drawn.token_id for drawn in self.runner.run(step(*rows), self.adapters)]

    def expected(self, token_ids: Sequence[int], adapter: str | None = None) -> Tensor:
        """The logits after the last token, out of transformers and PEFT."""
        with torch.inference_mode():
            logits: Tensor = self.oracles[adapter](torch.tensor([list(token_ids)])).logits
        return logits[0, -1]


def build(folder: Path, family: str, *, num_threads: int = 1, **fields: object) -> Model:
    make_model(folder / "model", family, **fields)
    weights = load_model(folder / "model")
    return Model(
        folder=folder / "model",
        runner=ModelRunner(
            weights,
            CpuBatches(weights, KvCache(weights.shape, 32, BLOCK_SIZE), num_threads),
            no_grammars(folder / "model"),
            crew=crew.Crew(num_threads),
        ),
        adapters={},
        oracles={None: load_hf(folder / "model")},
    )


def name_of(row: Row) -> str | None:
    return None if row.adapter is None else row.adapter.adapter_id


def add_adapter(model: Model, name: str, **choice: object) -> None:
    folder = make_adapter(model.folder.parent / name, model.folder, **choice)
    model.adapters[adapter_of(name)] = load_adapter(folder, model.folder)
    model.oracles[name] = load_peft(folder, model.folder)


@pytest.fixture(scope="module", params=[(name, n) for name in FAMILY_FIELDS for n in (1, 3)])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """Each family, with one adapter of every kind, run by one thread and shared by three."""
    family, num_threads = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_batches, "_LEAST_TOKENS", 4)
        patch.setattr(crew, "_LEAST_CUT", 2)
        model = build(tmp_path_factory.mktemp(family), family, num_threads=num_threads)
        yield _with_adapters(model)


def _with_adapters(model: Model) -> Model:
    add_adapter(model, "all", rank=6, seed=1)
    add_adapter(model, "attention", rank=16, targets=ATTENTION, seed=2, use_rslora=True)
    add_adapter(model, "some", rank=3, targets=["v_proj", "up_proj"], seed=3)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return build(tmp_path_factory.mktemp("llama"), "llama")


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 128, (count,), generator=generator).tolist()


def test_a_prompt_gives_the_logits_of_transformers(model: Model) -> None:
    prompt = tokens(30)
    logits = model.logits(row("a", prompt, SHUFFLED))
    torch.testing.assert_close(logits[0], model.expected(prompt), **TOLERANCE)


@pytest.mark.parametrize("name", ["all", "attention", "some"])
def test_an_adapter_gives_the_logits_of_peft(model: Model, name: str) -> None:
    prompt = tokens(30)
    expected = model.expected(prompt, name)
    logits = model.logits(row("a", prompt, SHUFFLED, adapter=name))
    torch.testing.assert_close(logits[0], expected, **TOLERANCE)
    assert (expected - model.expected(prompt)).abs().max() > 0.5


@pytest.mark.parametrize("sizes", [[1, 29], [29, 1], [13, 1, 9, 7], [10, 10, 10]])
def test_a_prompt_in_chunks_is_as_the_whole(model: Model, sizes: list[int]) -> None:
    prompt = tokens(30)
    start = 0
    for size in sizes[:-1]:
        chunk = row(
            "a", prompt[start : start + size], SHUFFLED, start=start, adapter="all", sampling=None
        )
        assert model.run(chunk) == [None]
        start += size
    logits = model.logits(row("a", prompt[start:], SHUFFLED, start=start, adapter="all"))
    torch.testing.assert_close(logits[0], model.expected(prompt, "all"), **TOLERANCE)


def test_one_step_mixes_decodes_and_chunks_of_many_lengths_and_adapters(model: Model) -> None:
    long, short, fresh, part = tokens(27), tokens(4, 1), tokens(9, 2), tokens(12, 3)
    model.run(
        row("long", long[:-1], SHUFFLED, adapter="all", sampling=None),
        row("short", short[:-1], OTHERS[0], sampling=None),
        row("part", part[:5], OTHERS[1], adapter="some", sampling=None),
    )
    mixed = step(
        row("long", long[-1:], SHUFFLED, start=26, adapter="all"),
        row("short", short[-1:], OTHERS[0], start=3),
        row("fresh", fresh, OTHERS[2], adapter="attention"),
        row("part", part[5:], OTHERS[1], start=5, adapter="some"),
    )
    logits = model.runner.logits(mixed, model.adapters)
    expected = {
        "long": model.expected(long, "all"),
        "short": model.expected(short),
        "fresh": model.expected(fresh, "attention"),
        "part": model.expected(part, "some"),
    }
    for own, each in zip(logits, mixed.rows, strict=True):
        torch.testing.assert_close(own, expected[each.request_id], **TOLERANCE)


def test_a_row_attends_to_what_another_computes_in_the_same_step(model: Model) -> None:
    first, second = tokens(17), [*tokens(12), *tokens(9, 1)]
    logits = model.logits(
        row("first", first, SHUFFLED, adapter="all"),
        row("second", second[12:], [*SHUFFLED[:3], *OTHERS[0]], start=12, adapter="all"),
    )
    torch.testing.assert_close(logits[0], model.expected(first, "all"), **TOLERANCE)
    torch.testing.assert_close(logits[1], model.expected(second, "all"), **TOLERANCE)


def test_a_step_of_decodes_runs_every_row_with_its_own_adapter(model: Model) -> None:
    prompts = {None: tokens(6), "all": tokens(9, 1), "attention": tokens(3, 2)}
    blocks = dict(zip(prompts, OTHERS, strict=True))
    for adapter, prompt in prompts.items():
        model.run(row("x", prompt[:-1], blocks[adapter], adapter=adapter, sampling=None))
    decodes = step(
        *(
            row("x", prompt[-1:], blocks[adapter], start=len(prompt) - 1, adapter=adapter)
            for adapter, prompt in prompts.items()
        )
    )
    logits = model.runner.logits(decodes, model.adapters)
    for own, each in zip(logits, decodes.rows, strict=True):
        expected = model.expected(prompts[name_of(each)], name_of(each))
        torch.testing.assert_close(own, expected, **TOLERANCE)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_positions_are_encoded_as_the_model_wants(tmp_path: Path, rope: dict[str, object]) -> None:
    model = build(tmp_path, "llama", rope_parameters=rope)
    prompt = tokens(30)
    torch.testing.assert_close(
        model.logits(row("a", prompt, SHUFFLED))[0], model.expected(prompt), **TOLERANCE
    )


def test_biases_everywhere_are_added(tmp_path: Path) -> None:
    model = build(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    prompt = tokens(30)
    torch.testing.assert_close(
        model.logits(row("a", prompt, SHUFFLED))[0], model.expected(prompt), **TOLERANCE
    )


def test_only_rows_that_sample_get_a_token(llama: Model) -> None:
    prompt = tokens(8)
    drawn = llama.run(
        row("a", prompt[:4], [0, 1], sampling=None),
        row("b", prompt, [2, 3]),
        row("c", prompt[:5], [4, 5], sampling=None),
    )
    assert drawn == [None, int(llama.expected(prompt).argmax()), None]


def test_an_empty_step_is_no_work(llama: Model) -> None:
    assert llama.run() == []


def generate(model: Model, company: int, seed: int) -> list[int]:
    """Twelve sampled tokens of one sequence, with others beside it."""
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed)
    sequence = tokens(7)
    others = [
        row(f"other {n}", tokens(5 + n, n), OTHERS[n], sampling=GREEDY) for n in range(company)
    ]
    begin = 0
    for _ in range(12):
        own = row("own", sequence[begin:], SHUFFLED, start=begin, sampling=sampling)
        begin = len(sequence)
        (token,) = model.run(*others[: company // 2], own, *others[company // 2 :])[
            company // 2 : company // 2 + 1
        ]
        assert token is not None
        sequence.append(token)
    return sequence[7:]


def test_a_seed_gives_the_same_tokens_in_any_company(llama: Model) -> None:
    alone = generate(llama, 0, seed=5)
    assert alone == generate(llama, 1, seed=5) == generate(llama, 3, seed=5)
    assert alone != generate(llama, 0, seed=6)


def test_a_sequence_goes_on_from_any_token_as_it_would_have(llama: Model) -> None:
    """As after a preemption or on another worker: output so far becomes part of the prompt."""
    sampling = Sampling(temperature=1.0, top_p=0.95, seed=5)
    whole = tokens(7) + generate(llama, 0, seed=5)
    for cut in (8, 12):
        drawn = llama.run(row("again", whole[:cut], SHUFFLED, sampling=sampling))
        assert drawn == [whole[cut]]


def test_prompt_tokens_are_scored_as_transformers_scores_them(llama: Model) -> None:
    prompt = tokens(9)
    chunk = replace(
        row("a", prompt[:5], SHUFFLED, sampling=None),
        score=Score(token_ids=tuple(prompt[1:6]), num_top=2),
    )
    rest = replace(
        row("a", prompt[5:], SHUFFLED, start=5),
        score=Score(token_ids=tuple(prompt[6:]), num_top=0),
    )
    scored: list[TokenLogprobs] = []
    for part in (chunk, rest):
        (drawn,) = llama.runner.run(step(part), llama.adapters)
        scored += drawn.scored
    with torch.inference_mode():
        logits = llama.oracles[None](torch.tensor([prompt])).logits[0]
    expected = logits.log_softmax(dim=-1)
    for position, found in enumerate(scored):
        right = float(expected[position, prompt[position + 1]])
        assert found.logprob == pytest.approx(right, abs=1e-3)
    assert len(scored) == 8
    assert scored[0].top[0][0] == int(expected[0].argmax())
