"""What requests may contain."""

import json
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anole_gateway.bodies import read
from anole_gateway.errors import InvalidRequest, UnsupportedParameter
from anole_gateway.wire import ChatRequest, CompletionRequest
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
        ({"min_tokens": -1}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": 1.1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 11}, "repetition_penalty"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1.0": 1}}, "logit_bias"),
        ({"logit_bias": {"\u0661": 1}}, "logit_bias"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": "5"}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
        ({"stop_token_ids": 5}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop_token_ids": [True]}, "stop_token_ids"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids"),
        ({"stop_token_ids": [5] * 129}, "stop_token_ids"),
        ({"logprobs": 3}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 2}, "top_logprobs"),
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


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 0, "echo": False}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
    ],
)
def test_wrong_values_of_completions_are_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_text(**fields)
    assert refused.value.param == param
    assert refused.value.message.startswith(param)


UNSUPPORTED: list[tuple[str, object]] = [
    ("best_of", 3),
    ("prompt_logprobs", 1),
    ("use_beam_search", True),
    ("include_stop_str_in_output", True),
    ("skip_special_tokens", False),
    ("return_tokens_as_token_ids", True),
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
        ("echo", True),
        ("echo", 0),
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
    neutral: dict[str, Any] = {
        "n": 1,
        "best_of": 1,
        "logprobs": None,
        "stop_token_ids": [],
        "min_tokens": 0,
        "structured_outputs": None,
        "guided_json": None,
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


def test_best_of_may_say_what_n_says() -> None:
    assert read_chat(n=3, best_of=3).num_choices == 3
    for fields in ({"n": 2, "best_of": 3}, {"best_of": 2}, {"n": 2, "best_of": 1}):
        with pytest.raises(UnsupportedParameter, match="ask for n answers"):
            read_text(**fields)


def test_an_echo_may_be_all_that_is_wanted() -> None:
    request = read_text(echo=True, max_tokens=0)
    assert (request.is_only_echo, request.token_limit) == (True, 1)
    request = read_text(echo=True, max_tokens=3)
    assert (request.is_echo, request.is_only_echo, request.token_limit) == (True, False, 3)
    assert not read_text().is_echo
    assert not read_chat().is_echo


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
