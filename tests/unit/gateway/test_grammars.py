"""Constraints become grammars, or a reason why not; whatever they do to the process that tries."""

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from llguidance import LLMatcher, LLTokenizer

from anole_gateway import grammars as module
from anole_gateway.constraints import Constraint, Language, _choice, _schema
from anole_gateway.errors import (
    InternalFailure,
    InvalidRequest,
    Unavailable,
    UnsupportedParameter,
)
from anole_gateway.grammars import Grammars

JSON_VALUE = Constraint(language=Language.JSON_SCHEMA, source="{}")


@asynccontextmanager
async def compiling(model_dir: Path) -> AsyncIterator[Grammars]:
    grammars = Grammars(model_dir)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(grammars.run())
        yield grammars
        running.cancel()


@pytest.fixture
async def grammars(plain_model_dir: Path) -> AsyncIterator[Grammars]:
    async with compiling(plain_model_dir) as grammars:
        yield grammars


@pytest.fixture(scope="module")
def vocabulary(plain_model_dir: Path) -> LLTokenizer:
    return LLTokenizer((plain_model_dir / "tokenizer.json").read_text())


def constraint(language: Language, source: str) -> Constraint:
    return Constraint(language=language, source=source)


def fits(vocabulary: LLTokenizer, grammar: str, text: str) -> bool:
    """Whether the grammar takes the text, and takes it as a whole."""
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    tokens = vocabulary.greedy_tokenize(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def written(vocabulary: LLTokenizer, grammar: str, rng: random.Random) -> str:
    """What a model that knows nothing would write."""
    matcher = LLMatcher(vocabulary, grammar, log_level=0)
    tokens: list[int] = []
    while not matcher.is_stopped():
        mask = matcher.compute_bitmask()
        allowed = [bit for bit in range(vocabulary.vocab_size) if mask[bit // 8] >> bit % 8 & 1]
        tokens.append(rng.choice(allowed))
        assert matcher.consume_token(tokens[-1])
    assert not matcher.is_error()
    if tokens[-1] in vocabulary.eos_tokens:
        tokens.pop()
    return vocabulary.decode_bytes(tokens).decode()


async def test_a_schema_lets_its_values_pass_without_white_space(
    grammars: Grammars, vocabulary: LLTokenizer
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = await grammars.compile(_schema(schema), param="x")
    assert fits(vocabulary, grammar, '{"a":1}')
    assert fits(vocabulary, grammar, '{"a":1,"b":[true,null]}')
    for text in ('{"a": 1}', '{"a":1}\n', ' {"a":1}', '{"b":1}', '{"a":"1"}', "[1]", ""):
        assert not fits(vocabulary, grammar, text)


async def test_a_client_may_ask_for_white_space(
    grammars: Grammars, vocabulary: LLTokenizer
) -> None:
    schema = {"type": "array", "x-guidance": {"whitespace_flexible": True}}
    grammar = await grammars.compile(_schema(schema), param="x")
    assert fits(vocabulary, grammar, "[1, 2]")


async def test_what_a_model_writes_under_a_schema_is_json_of_it(
    grammars: Grammars, vocabulary: LLTokenizer
) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "ages": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        },
        "required": ["kind", "ages"],
        "additionalProperties": False,
    }
    grammar = await grammars.compile(_schema(schema), param="x")
    rng = random.Random(0)  # noqa: S311
    for _ in range(20):
        value = json.loads(written(vocabulary, grammar, rng))
        assert set(value) == {"kind", "ages"}
        assert value["kind"] in {"cat", "dog"}
        assert all(type(age) is int for age in value["ages"])


async def test_choices_are_texts_whatever_is_in_them(
    grammars: Grammars, vocabulary: LLTokenizer
) -> None:
    choices = ["a", "ab", "x|y", ".*", "a\nb", '"', "\\d", "/", "é日", "(", "#", "~&-", " ", "\t"]
    grammar = await grammars.compile(_choice(choices), param="x")
    rng = random.Random(0)  # noqa: S311
    assert {written(vocabulary, grammar, rng) for _ in range(400)} == set(choices)


@pytest.mark.parametrize("source", ['start: "yes" | "no"', 'root ::= "yes" | "no"'])
async def test_grammars_may_be_lark_or_gbnf(
    grammars: Grammars, vocabulary: LLTokenizer, source: str
) -> None:
    grammar = await grammars.compile(constraint(Language.GRAMMAR, source), param="x")
    assert fits(vocabulary, grammar, "yes")
    assert not fits(vocabulary, grammar, "yesno")


@pytest.mark.parametrize(
    ("language", "source", "says"),
    [
        (Language.JSON_SCHEMA, '{"type":"strang"}', "Invalid type: strang"),
        (Language.JSON_SCHEMA, '{"not":{}}', 'Unimplemented keys: \\["not"\\]'),
        (Language.JSON_SCHEMA, '{"$ref":"file:///etc/passwd"}', "does not fetch"),
        (Language.JSON_SCHEMA, '{"type":"integer","minimum":5,"maximum":1}', "Unsatisfiable"),
        (Language.JSON_SCHEMA, '{"allOf":[{"$ref":"#"}]}', "nothing that this model can write"),
        (Language.REGEX, "(", "unclosed group"),
        (Language.REGEX, "(?=a)b", "look-around"),
        (Language.REGEX, r"a?[^\s\S]", "nothing that this model can write"),
        (Language.GRAMMAR, "start: nothing", "unknown name"),
        (Language.GRAMMAR, "start: <nope>", "unknown special token"),
        (Language.GRAMMAR, "(((", "Expected"),
        (Language.GRAMMAR, "start: start", "nothing that this model can write"),
        (Language.GRAMMAR, "start: " + "(" * 10_000 + '"a"' + ")" * 10_000, "too deeply nested"),
    ],
)
async def test_what_is_wrong_is_told_in_the_librarys_words(
    grammars: Grammars, language: Language, source: str, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        await grammars.compile(constraint(language, source), param="some_field")
    assert refused.value.param == "some_field"
    assert refused.value.message.startswith("some_field: ")
    assert len(refused.value.message) < 300


HOSTILE = {
    "memory": constraint(
        Language.JSON_SCHEMA,
        json.dumps(
            {
                "allOf": [
                    {"type": "string", "pattern": f"[a-z]{{{least},{least + 500}}}x.*{least}"}
                    for least in range(30)
                ]
            }
        ),
    ),
    "stack": constraint(
        Language.GRAMMAR,
        "start: r0\n"
        + "".join(f'r{rule}: "x" r{rule + 1}\n' for rule in range(3000))
        + 'r3000: "a"',
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_constraint_that_would_end_its_process_ends_only_that(
    grammars: Grammars, kind: str
) -> None:
    with pytest.raises(InvalidRequest, match="too much time or memory"):
        await grammars.compile(HOSTILE[kind], param="x")
    assert await grammars.compile(JSON_VALUE, param="x")


async def test_a_process_that_does_not_answer_in_time_is_ended(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grammars.compile(JSON_VALUE, param="x")
    process = grammars._process
    assert process is not None
    monkeypatch.setattr(module, "_PATIENCE_S", 0.0)
    with pytest.raises(InvalidRequest, match="too much time"):
        await grammars.compile(constraint(Language.REGEX, "a"), param="x")
    assert process.returncode is not None


async def test_what_was_good_once_is_not_compiled_again(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_KNOWN", 2)
    regexes = [constraint(Language.REGEX, letter) for letter in "abc"]
    for regex in (regexes[0], regexes[1], regexes[0], regexes[2]):
        await grammars.compile(regex, param="x")
    assert list(grammars._known) == [regexes[0], regexes[2]]
    process = grammars._process
    assert process is not None
    process.kill()
    await process.wait()
    assert await grammars.compile(regexes[0], param="x")
    assert grammars._process is process


async def test_many_who_ask_for_the_same_get_it(grammars: Grammars) -> None:
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(grammars.compile(JSON_VALUE, param="x")) for _ in range(8)]
    assert len({task.result() for task in asking}) == 1


async def test_who_does_not_wait_for_the_answer_disturbs_nobody(grammars: Grammars) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await grammars.compile(constraint(Language.REGEX, "a+"), param="x")
    assert "b+" in await grammars.compile(constraint(Language.REGEX, "b+"), param="x")
    assert constraint(Language.REGEX, "a+") in grammars._known


async def test_more_than_may_wait_are_told_to_come_back(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_WAITING", 1)
    grammars = Grammars(model_dir)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(grammars.compile(JSON_VALUE, param="x"))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="too many constraints wait"):
            await grammars.compile(JSON_VALUE, param="x")
        waiting.cancel()


async def test_a_process_that_cannot_be_started_is_our_fault(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with compiling(model_dir) as grammars:
        for _ in range(2):
            with pytest.raises(InternalFailure, match="standard error"):
                await grammars.compile(JSON_VALUE, param="x")
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    async with compiling(model_dir) as grammars:
        with pytest.raises(InternalFailure, match="cannot be compiled here"):
            await grammars.compile(JSON_VALUE, param="x")


async def test_a_vocabulary_that_the_library_cannot_read_constrains_nothing(
    model_dir: Path, tmp_path: Path
) -> None:
    for folder in (model_dir, tmp_path):
        async with compiling(folder) as grammars:
            with pytest.raises(UnsupportedParameter, match="cannot be constrained: "):
                await grammars.compile(JSON_VALUE, param="x")
