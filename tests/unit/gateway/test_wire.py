"""What requests may contain."""

import json
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_gateway.errors import InvalidRequest, UnsupportedParameter
from anole_gateway.wire import ChatRequest, CompletionRequest, read
from tests.unit.gateway.harness import chat, text


def read_chat(**fields: Any) -> ChatRequest:
    return read(ChatRequest, orjson.dumps(chat(**fields)))


def read_text(**fields: Any) -> CompletionRequest:
    return read(CompletionRequest, orjson.dumps(text(**fields)))


def test_content_may_be_parts_which_are_joined_by_line_breaks() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = read_chat(messages=[{"role": "user", "content": parts}])
    assert request.messages[0].content == "one\ntwo"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2]), ("", "")],
)
def test_a_prompt_is_a_text_or_tokens_alone_or_in_a_list(prompt: object, expected: object) -> None:
    assert read_text(prompt=prompt).prompt == expected


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (["a", "b"], "one prompt a request, not 2"),
        ([[1], [2]], "one prompt a request, not 2"),
        ([], "not empty"),
        ([[[1]]], "whole numbers"),
        ([1, "a"], "whole numbers"),
        ([True], "whole numbers"),
        ([-1], "whole numbers"),
        ([1.5], "whole numbers"),
        (None, "a string or a list"),
        ({"a": 1}, "a string or a list"),
    ],
)
def test_other_prompts_are_refused(prompt: object, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        read_text(prompt=prompt)
    assert refused.value.param == "prompt"


def test_stop_may_be_one_string_or_up_to_four() -> None:
    assert read_chat(stop="a").stop == ["a"]
    assert read_chat(stop=["a", "b", "c", "d"]).stop == ["a", "b", "c", "d"]
    assert read_chat(stop=None).stop == []
    assert read_text(stop="x" * 256).stop == ["x" * 256]


def test_max_completion_tokens_replaces_max_tokens() -> None:
    assert read_chat(max_tokens=3).token_limit == 3
    assert read_chat(max_tokens=3, max_completion_tokens=5).token_limit == 5
    assert read_chat().token_limit is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "x"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": 1}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"ignore_eos": "no"}, "ignore_eos"),
    ],
)
def test_wrong_values_are_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_chat(**fields)
    assert refused.value.param == param
    assert refused.value.message.startswith(param)


def test_parts_that_are_no_text_are_named() -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(InvalidRequest, match="'image_url' is not supported"):
        read_chat(messages=[{"role": "user", "content": parts}])


UNSUPPORTED: list[tuple[str, object]] = [
    ("n", 2),
    ("best_of", 3),
    ("logprobs", True),
    ("logprobs", 0),
    ("top_logprobs", 5),
    ("frequency_penalty", 0.5),
    ("presence_penalty", -1),
    ("repetition_penalty", 1.1),
    ("logit_bias", {"5": 1}),
    ("top_k", 40),
    ("min_p", 0.1),
    ("min_tokens", 3),
    ("use_beam_search", True),
    ("stop_token_ids", [1]),
    ("response_format", {"type": "json_object"}),
    ("structured_outputs", {"json": {}}),
    ("echo", True),
    ("echo", 0),
]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *UNSUPPORTED,
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("modalities", ["audio"]),
        ("chat_template", "{{ x }}"),
        ("continue_final_message", True),
    ],
)
def test_what_a_chat_cannot_do_is_said_not_ignored(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter, match=f"{name} is") as refused:
        read_chat(**{name: value})
    assert refused.value.param == name


@pytest.mark.parametrize(("name", "value"), [*UNSUPPORTED, ("suffix", "x")])
def test_what_a_completion_cannot_do_is_said_not_ignored(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter, match=f"{name} is"):
        read_text(**{name: value})


def test_values_that_change_nothing_are_accepted() -> None:
    neutral = {
        "n": 1,
        "best_of": 1,
        "logprobs": None,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "top_k": -1,
        "min_p": 0.0,
        "response_format": {"type": "text"},
        "echo": False,
        "user": "somebody",
        "metadata": {"a": "b"},
        "something_new": {"deep": [1, 2]},
    }
    assert read_text(**neutral, suffix=None).model == "tiny"
    assert read_chat(**neutral | {"logprobs": False}, tools=[], tool_choice="auto").model == "tiny"


def test_min_tokens_is_kept_where_nothing_ends_the_answer_early() -> None:
    request = read_text(min_tokens=8, max_tokens=8, ignore_eos=True)
    assert request.min_tokens == 8
    for refused in ({"max_tokens": 7}, {"ignore_eos": False}, {"stop": "x"}, {"max_tokens": None}):
        with pytest.raises(UnsupportedParameter):
            read_text(**({"min_tokens": 8, "max_tokens": 8, "ignore_eos": True} | refused))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"null",
        b"3",
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "temperature": 1e999}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 1e30}',
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read(ChatRequest, body)


@pytest.mark.parametrize("depth", [100, 1000])
def test_deep_nesting_in_any_field_is_no_fault_of_ours(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    for field in (b"messages", b"prompt", b"stop", b"logit_bias", b"model", b"unknown"):
        body = b'{"model": "tiny", "prompt": "a", "' + field + b'": ' + deep + b"}"
        for shape in (ChatRequest, CompletionRequest):
            with suppress(InvalidRequest):
                read(shape, body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = sorted(
    {*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatRequest.neutral, "suffix"}
)


@given(fields=st.dictionaries(st.sampled_from(NAMES), json_values, max_size=4))
def test_any_json_is_read_or_refused(fields: dict[str, Any]) -> None:
    for shape, valid in ((ChatRequest, chat()), (CompletionRequest, text())):
        body = json.dumps(valid | fields).encode()
        with suppress(InvalidRequest):
            read(shape, body)
