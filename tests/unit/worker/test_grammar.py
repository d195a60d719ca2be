import dataclasses
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from anole_shared.errors import AnoleError
from anole_worker.core.step import Row, Sampling
from anole_worker.runtime import grammar as grammar_module
from anole_worker.runtime.grammar import GrammarRefused, Grammars, constrain
from tests.unit.worker.draws import (
    END_OF_TEXT,
    EOS,
    TURN_BEGIN,
    TURN_END,
    VOCAB_SIZE,
    drawing,
    make_tokenizer,
    read_tokenizer,
    schema_grammar,
    shape,
)

YES_OR_NO = 'start: "yes" | "no"'
WORDS = "start: /[a-z]+/"
PERSON = schema_grammar(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return read_tokenizer(folder)


@pytest.fixture
def grammars(folder: Path) -> Grammars:
    return Grammars(folder, shape(), max_held=10)


def following(grammar: str, output: Sequence[int] = (), **fields: Any) -> Row:
    return drawing(Sampling(temperature=0, grammar=grammar), output=output, **fields)


def allowed(grammars: Grammars, row: Row) -> set[int]:
    mask = grammars.mask(row)
    return set(np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist())


def texts(tokenizer: Tokenizer, token_ids: set[int]) -> set[str]:
    return {tokenizer.decode([token_id]) for token_id in token_ids}


def test_only_what_the_grammar_allows_may_come_next(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammars.prepare("r", YES_OR_NO)
    first = texts(tokenizer, allowed(grammars, following(YES_OR_NO)))
    assert {"y", "n"} <= first
    assert all("yes".startswith(text) or "no".startswith(text) for text in first)
    (n,) = tokenizer.encode("n").ids
    assert texts(tokenizer, allowed(grammars, following(YES_OR_NO, [n]))) == {"o"}


def test_a_complete_output_can_only_end(grammars: Grammars, tokenizer: Tokenizer) -> None:
    grammars.prepare("r", YES_OR_NO)
    yes = tokenizer.encode("yes").ids
    assert allowed(grammars, following(YES_OR_NO, yes)) == set(EOS)


def test_an_output_that_may_end_here_may_also_go_on(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammars.prepare("r", WORDS)
    assert not allowed(grammars, following(WORDS)) & set(EOS)
    after = allowed(grammars, following(WORDS, tokenizer.encode("that").ids))
    assert set(EOS) < after


@pytest.mark.parametrize("end", EOS)
def test_an_output_that_has_ended_stays_ended(
    grammars: Grammars, tokenizer: Tokenizer, end: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the end is to be ignored, further tokens are asked for."""
    for grammar, text in ((WORDS, "this"), (YES_OR_NO, "yes")):
        grammars.prepare("r", grammar)
        output = [*tokenizer.encode(text).ids, end]
        for _ in range(3):
            row = following(grammar, output)
            assert allowed(grammars, row) == set(EOS)
            grammars.forget("late")
            assert allowed(grammars, dataclasses.replace(row, request_id="late")) == set(EOS)
            output.append(TURN_END)
    assert not caplog.records


def test_special_tokens_and_those_the_tokenizer_lacks_are_no_text(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    anything = "start: /(.|\\n)+/"
    grammars.prepare("r", anything)
    may_come = allowed(grammars, following(anything))
    assert may_come <= set(range(tokenizer.get_vocab_size()))
    assert not may_come & {END_OF_TEXT, TURN_BEGIN, TURN_END}
    assert len(may_come) > 150


def test_one_token_a_step_gives_what_catching_up_at_once_gives(
    folder: Path, grammars: Grammars, tokenizer: Tokenizer
) -> None:
    """As after a preemption, or on another worker."""
    grammars.prepare("r", PERSON)
    output = tokenizer.encode('{"name": "Zoë", "age": 12}').ids
    (matcher,) = [held.matcher for held in grammars._held.values()]
    for end, token_id in enumerate([*output, TURN_END]):
        row = following(PERSON, output[:end])
        fresh = Grammars(folder, shape(), max_held=10)
        stepwise = allowed(grammars, row)
        assert stepwise == allowed(fresh, row) == allowed(grammars, row)
        assert token_id in stepwise
    assert [held.matcher for held in grammars._held.values()] == [matcher]


def test_a_forgotten_sequence_catches_up_when_it_is_needed_again(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammars.prepare("r", PERSON)
    row = following(PERSON, tokenizer.encode('{"name":').ids)
    before = allowed(grammars, row)
    grammars.forget("r")
    grammars.forget("r")
    assert not grammars._held
    assert allowed(grammars, row) == before


def test_a_sequence_that_begins_again_is_followed_from_its_begin(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammars.prepare("r", YES_OR_NO)
    first = allowed(grammars, following(YES_OR_NO))
    allowed(grammars, following(YES_OR_NO, tokenizer.encode("yes").ids))
    assert allowed(grammars, following(YES_OR_NO)) == first


def test_no_more_is_held_than_the_limit_and_nothing_is_lost_by_it(folder: Path) -> None:
    grammars = Grammars(folder, shape(), max_held=3)
    names = [f"r{index}" for index in range(10)]
    for name in names:
        grammars.prepare(name, YES_OR_NO)
    assert list(grammars._held) == names[-3:]
    grammars.prepare("r7", YES_OR_NO)
    grammars.prepare("new", YES_OR_NO)
    assert list(grammars._held) == ["r9", "r7", "new"]
    masks = [allowed(grammars, following(YES_OR_NO, name=name)) for name in names]
    assert len(grammars._held) == 3
    assert all(mask == masks[0] for mask in masks)


def test_banned_tokens_are_left_out_while_anything_else_may_come(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammars.prepare("r", WORDS)
    output = tokenizer.encode("this").ids
    (e,) = tokenizer.encode("e").ids
    may_come = allowed(grammars, following(WORDS, output))
    banned = following(WORDS, output, banned=(*EOS, e, VOCAB_SIZE + 50))
    assert allowed(grammars, banned) == may_come - {*EOS, e}
    assert allowed(grammars, following(WORDS, output)) == may_come
    grammars.prepare("r", YES_OR_NO)
    complete = following(YES_OR_NO, tokenizer.encode("no").ids, banned=EOS)
    assert allowed(grammars, complete) == set(EOS)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("", "Empty grammar"),
        ("this is none", "Expected token"),
        ("start: missing", "unknown name"),
        ("start: /(?=a)b/", "look-around"),
        ("{}", "missing field"),
        ("{", "EOF"),
        (schema_grammar({"type": "nothing"}), "Invalid type"),
        (schema_grammar({"type": "integer", "minimum": 3, "maximum": 2}), "Unsatisfiable"),
        (schema_grammar({"$ref": "http://127.0.0.1:1/x"}), "does not fetch"),
    ],
)
def test_a_wrong_grammar_is_refused_with_its_reason(
    grammars: Grammars, grammar: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(GrammarRefused, match=reason) as refused:
        grammars.prepare("r", grammar)
    assert isinstance(refused.value, AnoleError)
    assert len(str(refused.value)) < 1000
    assert not grammars._held
    assert capfd.readouterr() == ("", "")


def test_a_grammar_that_takes_too_much_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_module, "_MAX_LEXER_STATES", 3)
    with pytest.raises(GrammarRefused, match="too many states"):
        Grammars(folder, shape(), max_held=10).prepare("r", "start: /[a-z]{30}/")


def test_a_grammar_that_comes_to_take_too_much_ends_its_output(
    folder: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(grammar_module, "_MAX_LEXER_STATES", 600)
    grammars = Grammars(folder, shape(), max_held=10)
    growing = "start: /(.*a.{20})+/"
    a_or_x = [tokenizer.token_to_id("a"), tokenizer.token_to_id("x")]
    grammars.prepare("r", growing)
    output = [a_or_x[bit] for bit in np.random.default_rng(0).integers(0, 2, 200)]
    masks = [allowed(grammars, following(growing, output[:end])) for end in range(len(output))]
    assert len(masks[0]) > 100
    assert masks[-1] == set(EOS)
    assert "too many states" in caplog.text


def test_an_output_that_leaves_its_grammar_ends_and_harms_no_other(
    grammars: Grammars,
    tokenizer: Tokenizer,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    grammars.prepare("good", YES_OR_NO)
    grammars.prepare("bad", YES_OR_NO)
    bad = following(YES_OR_NO, tokenizer.encode("maybe").ids, name="bad")
    later = following(YES_OR_NO, [*tokenizer.encode("maybe").ids, TURN_END], name="bad")
    with caplog.at_level(logging.WARNING):
        assert allowed(grammars, bad) == set(EOS)
        assert allowed(grammars, later) == set(EOS)
    assert texts(tokenizer, allowed(grammars, following(YES_OR_NO, name="good"))) >= {"y", "n"}
    (record,) = caplog.records
    assert "request bad" in record.getMessage()
    assert "doesn't satisfy the grammar" in record.getMessage()
    assert "start:" not in record.getMessage()
    assert capfd.readouterr() == ("", "")


def test_a_grammar_that_turns_bad_after_it_was_accepted_ends_its_output(
    grammars: Grammars, caplog: pytest.LogCaptureFixture
) -> None:
    grammars.load()
    assert allowed(grammars, following("start: missing")) == set(EOS)
    assert "unknown name" in caplog.text


def test_nothing_is_read_before_the_first_grammar(tmp_path: Path, folder: Path) -> None:
    grammars = Grammars(tmp_path, shape(), max_held=10)
    with pytest.raises(GrammarRefused, match=r"belongs to the model"):
        grammars.prepare("r", YES_OR_NO)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    grammars.prepare("r", YES_OR_NO)
    assert allowed(grammars, following(YES_OR_NO))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}', "\xff"])
def test_a_broken_tokenizer_refuses_the_grammar_not_the_worker(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(GrammarRefused, match=r"ask for plain output"):
        Grammars(tmp_path, shape(), max_held=10).prepare("r", YES_OR_NO)


def test_a_tokenizer_with_more_tokens_than_the_model_is_none_of_its(folder: Path) -> None:
    with pytest.raises(GrammarRefused, match="belongs to the model"):
        Grammars(folder, shape(vocab_size=300), max_held=10).load()


def test_grammars_are_prepared_while_others_are_followed(
    grammars: Grammars, tokenizer: Tokenizer
) -> None:
    grammars.prepare("r", PERSON)
    output = tokenizer.encode('{"name": "Ada", "age": 36}').ids
    rows = [following(PERSON, output[:end]) for end in range(len(output))]
    expected = [allowed(grammars, row) for row in rows]
    grammars.prepare("r", PERSON)
    with ThreadPoolExecutor(2) as threads:
        prepared = [
            threads.submit(grammars.prepare, f"other {index % 5}", PERSON) for index in range(100)
        ]
        followed = [allowed(grammars, row) for row in rows]
        assert all(future.result() is None for future in prepared)
    assert followed == expected


@pytest.mark.parametrize("vocab_size", [400, VOCAB_SIZE])
def test_forbidden_tokens_lose_their_logits_in_rows_with_a_mask_alone(
    folder: Path, vocab_size: int
) -> None:
    grammars = Grammars(folder, shape(vocab_size), max_held=10)
    grammars.prepare("r", WORDS)
    row = following(WORDS)
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(0))
    constrained = logits.clone()
    constrain(constrained, {2: grammars.mask(row), 0: grammars.mask(row)})
    may_come = torch.zeros(vocab_size, dtype=torch.bool)
    may_come[list(allowed(grammars, row))] = True
    assert torch.equal(constrained[1], logits[1])
    for index in (0, 2):
        assert torch.equal(constrained[index, may_come], logits[index, may_come])
        assert constrained[index, ~may_come].eq(-torch.inf).all()


def test_a_row_without_grammar_or_history_is_our_own_bug(grammars: Grammars) -> None:
    with pytest.raises(ValueError, match="no grammar"):
        grammars.mask(drawing(Sampling(temperature=0)))
    with pytest.raises(ValueError, match="no history"):
        grammars.mask(dataclasses.replace(following(WORDS), history=None))
