"""Counting tokens over HTTP."""

from pathlib import Path
from typing import Any

import pytest

from anole_gateway.tokenizer import Tokenizer
from tests.unit.gateway.conftest import CONTEXT_LENGTH
from tests.unit.gateway.harness import adapter, serving

MESSAGES = [{"role": "developer", "content": "be"}, {"role": "user", "content": "hi"}]


async def test_a_prompt_is_tokenized_and_comes_back(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello 日本")
    async with serving(model_dir) as gateway:
        there = await gateway.post("/tokenize", {"model": "tiny", "prompt": "hello 日本"})
        back = await gateway.post("/detokenize", {"model": "tiny", "tokens": ids})
    assert there.json == {"count": len(ids), "max_model_len": CONTEXT_LENGTH, "tokens": ids}
    assert back.json == {"prompt": "hello 日本"}


async def test_a_chat_is_tokenized_as_a_completion_would(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        await gateway.add_adapter(adapter("poet"))
        body: dict[str, Any] = {"model": "poet", "messages": MESSAGES}
        whole = await gateway.post("/tokenize", body)
        without = await gateway.post("/tokenize", body | {"add_generation_prompt": False})
        shown = await gateway.post("/detokenize", {"tokens": whole.json["tokens"]})
    rendered = "<|im_start|>system\nbe<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
    assert shown.json["prompt"] == rendered + "<|im_start|>assistant\n"
    num_tokens = without.json["count"]
    assert whole.json["tokens"][:num_tokens] == without.json["tokens"]
    assert num_tokens < whole.json["count"]


async def test_long_texts_and_short_ones_are_treated_alike(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    text = "hello world, how are you today? " * 400
    async with serving(model_dir) as gateway:
        there = await gateway.post("/tokenize", {"prompt": text})
        back = await gateway.post("/detokenize", {"tokens": there.json["tokens"]})
        empty = await gateway.post("/tokenize", {"prompt": "", "add_special_tokens": False})
        nothing = await gateway.post("/detokenize", {"tokens": []})
    assert there.json["tokens"] == await tokenizer.encode(text)
    assert back.json == {"prompt": text}
    assert empty.json["tokens"] == []
    assert nothing.json == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, 400, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt"),
        ("/tokenize", {"messages": []}, 400, "messages"),
        ("/tokenize", {"messages": [*MESSAGES, MESSAGES[0]]}, 400, "messages"),
        ("/tokenize", {"prompt": "a", "model": "nope"}, 404, "model"),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, 400, "return_token_strs"),
        ("/detokenize", {}, 400, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, 400, "tokens"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens.0"),
        ("/detokenize", {"tokens": [1], "model": "nope"}, 404, "model"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    model_dir: Path, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    async with serving(model_dir) as gateway:
        answer = await gateway.post(path, body)
    assert (answer.status, answer.error["param"]) == (status, param)


async def test_bodies_have_the_same_limits_as_elsewhere(model_dir: Path) -> None:
    async with serving(model_dir, max_body_bytes=1024) as gateway:
        for path in ("/tokenize", "/detokenize"):
            assert (await gateway.post(path, b" " * 1025)).status == 413
            assert (await gateway.post(path, b"{")).status == 400
