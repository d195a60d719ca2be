"""The tokenizer: templates in, text out, and no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_gateway import tokenizer as tokenizers
from anole_gateway.errors import InvalidRequest
from anole_gateway.tokenizer import ChatMessage, Detokenizer, Tokenizer
from anole_shared.errors import ConfigurationError

IM_END = "<|im_end|>"


def decode_all(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def test_a_chat_becomes_the_models_own_template_up_to_the_answer(tokenizer: Tokenizer) -> None:
    messages = [ChatMessage(role="system", content="be"), ChatMessage(role="user", content="hi")]
    rendered = (
        f"<|im_start|>system\nbe{IM_END}\n<|im_start|>user\nhi{IM_END}\n<|im_start|>assistant\n"
    )
    assert tokenizer._encode_chat(messages) == tokenizer._encode(rendered, add_special_tokens=False)


async def test_long_texts_encode_the_same_in_a_thread(tokenizer: Tokenizer) -> None:
    text = "hello world, how are you today? " * 400
    assert await tokenizer.encode(text) == tokenizer._encode(text, add_special_tokens=True)
    messages = [ChatMessage(role="user", content=text)]
    assert await tokenizer.encode_chat(messages) == tokenizer._encode_chat(messages)


async def test_a_template_that_refuses_is_the_clients_mistake(tokenizer: Tokenizer) -> None:
    messages = [ChatMessage(role="user", content="hi"), ChatMessage(role="system", content="be")]
    with pytest.raises(InvalidRequest, match="system message must come first") as refused:
        await tokenizer.encode_chat(messages)
    assert refused.value.param == "messages"


async def test_characters_of_several_tokens_come_out_whole(tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("aé日👩‍👧z")
    assert len(ids) > 10
    pieces = decode_all(tokenizer.detokenizer(), ids)
    assert "".join(pieces) == "aé日👩‍👧z"
    assert not any("\ufffd" in piece for piece in pieces)


async def test_a_character_that_never_ends_is_shown_as_broken_in_the_end(
    tokenizer: Tokenizer,
) -> None:
    ids = (await tokenizer.encode("x日"))[:-1]
    assert decode_all(tokenizer.detokenizer(), ids) == ["x", "", "", "\ufffd"]


async def test_special_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode(f"a{IM_END}b")
    assert len(ids) == 3
    assert "".join(decode_all(tokenizer.detokenizer(), ids)) == "ab"


@given(text=st.text(max_size=60))
def test_tokens_one_by_one_give_the_whole_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer._encode(text, add_special_tokens=False)
    whole = tokenizer._backend.decode(ids, skip_special_tokens=True)
    assert "".join(decode_all(tokenizer.detokenizer(), ids)) == whole


async def test_a_prompts_tokens_are_found_in_its_text(tokenizer: Tokenizer) -> None:
    for text in ("hello 日本 world", "lazy dog 日 " * 100):
        ids = tokenizer._encode(text, add_special_tokens=True)
        shown, begins = await tokenizer.locate(text)
        assert (shown, len(begins)) == (text, len(ids))
        assert await tokenizer.locate(ids) == (text, begins)
        ends = [*begins[1:], len(text)]
        for token_id, begin, end in zip(ids, begins, ends, strict=True):
            token = tokenizer.vocabulary.bytes_of(token_id)
            assert token in text[begin : end + 1].encode()


async def test_special_tokens_are_shown_in_prompts(tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode(f"a{IM_END}b")
    assert await tokenizer.decode(ids) == f"a{IM_END}b"
    assert await tokenizer.decode(ids * 400) == f"a{IM_END}b" * 400
    assert await tokenizer.locate(ids) == (f"a{IM_END}b", [0, 1, 1 + len(IM_END)])


def test_ids_beyond_the_vocabulary_are_refused_by_name(tokenizer: Tokenizer) -> None:
    tokenizer.check([], param="x")
    tokenizer.check([0, tokenizer.vocab_size - 1], param="x")
    with pytest.raises(InvalidRequest, match="x: token ids must be below") as refused:
        tokenizer.check([0, tokenizer.vocab_size], param="x")
    assert refused.value.param == "x"


def test_tokens_without_text_are_not_decoded_over_and_over() -> None:
    sizes: list[int] = []

    def decode(ids: list[int]) -> str:
        sizes.append(len(ids))
        return ""

    detokenizer = Detokenizer(decode)
    assert "".join(decode_all(detokenizer, [7] * 1000)) == ""
    assert max(sizes) <= 2 * tokenizers._MAX_HELD


def test_the_context_length_is_the_configs(model_dir: Path) -> None:
    assert tokenizers.context_length(model_dir) == 256


@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"max_position_embeddings": "x"}'])
def test_a_folder_without_a_usable_config_stops_the_start(
    tmp_path: Path, config: str | None
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        tokenizers.context_length(tmp_path)


def test_a_folder_without_a_tokenizer_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 8}))
    with pytest.raises(ConfigurationError, match="no tokenizer can be read from"):
        tokenizers.load(tmp_path)


def test_it_works_without_torch_and_says_nothing(model_dir: Path) -> None:
    """In a process of its own, where importing torch fails as it does in the gateway's image."""
    program = (
        "import asyncio, sys; sys.modules['torch'] = None\n"
        "import warnings; warnings.simplefilter('error')\n"
        "from pathlib import Path\n"
        "from anole_gateway.tokenizer import load, ChatMessage\n"
        "tokenizer = load(Path(sys.argv[1]))\n"
        "ids = asyncio.run(tokenizer.encode_chat([ChatMessage(role='user', content='hi')]))\n"
        "print(len(ids) > 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model_dir)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
