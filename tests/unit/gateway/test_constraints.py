"""What clients may ask an answer to look like."""

import json
from typing import Any

import orjson
import pytest

from anole_gateway.bodies import read
from anole_gateway.constraints import MAX_CHOICES, MAX_SOURCE_BYTES, Constraint, Language
from anole_gateway.errors import InvalidRequest
from anole_gateway.wire import ChatRequest, CompletionRequest
from tests.unit.gateway.harness import chat, text

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_SCHEMA = Constraint(
    language=Language.JSON_SCHEMA,
    source='{"type":"object","properties":{"a":{"type":"integer"}}}',
)
ANY_OBJECT = Constraint(language=Language.JSON_SCHEMA, source='{"type":"object"}')
AS_REGEX = Constraint(language=Language.REGEX, source="a|b")
AS_GRAMMAR = Constraint(language=Language.GRAMMAR, source='start: "a"')
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, ANY_OBJECT),
        ({"response_format": FORMAT}, AS_SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, AS_SCHEMA),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, AS_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, ANY_OBJECT),
        ({"structured_outputs": {"regex": "a|b"}}, AS_REGEX),
        ({"structured_outputs": {"choice": ["a", "b"]}}, AS_REGEX),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, AS_GRAMMAR),
        ({"guided_json": SCHEMA}, AS_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, AS_SCHEMA),
        ({"guided_regex": "a|b"}, AS_REGEX),
        ({"guided_choice": ["a", "b"]}, AS_REGEX),
        ({"guided_grammar": 'start: "a"'}, AS_GRAMMAR),
        ({"guided_json": SCHEMA, "guided_regex": None}, AS_SCHEMA),
        ({"response_format": {"type": "text"}, "guided_regex": "a|b"}, AS_REGEX),
    ],
)
def test_every_way_to_ask_is_understood(
    fields: dict[str, Any], expected: Constraint | None
) -> None:
    assert read(ChatRequest, orjson.dumps(chat(**fields))).constraint == expected
    assert read(CompletionRequest, orjson.dumps(text(**fields))).constraint == expected


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"response_format": "json"}, "response_format", "must be"),
        ({"response_format": {}}, "response_format", "must be"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
        ({"response_format": {"type": ["text"]}}, "response_format", "must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "needs"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
            "response_format",
            "must be an object",
        ),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one of json, regex"),
        ({"structured_outputs": "json"}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "exactly one of"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs", "true or false"),
        ({"guided_json": "{"}, "guided_json", "not JSON"),
        ({"guided_json": "[]"}, "guided_json", "must be an object"),
        ({"guided_json": 5}, "guided_json", "must be an object"),
        ({"guided_json": "{" * 2000}, "guided_json", "not JSON"),
        ({"guided_json": '{"a":' * 500 + "1" + "}" * 500}, "guided_json", "nested too deeply"),
        (
            {"guided_json": {"const": "x" * MAX_SOURCE_BYTES}},
            "guided_json",
            f"at most {MAX_SOURCE_BYTES}",
        ),
        ({"guided_regex": ""}, "guided_regex", "not empty"),
        ({"guided_regex": 5}, "guided_regex", "must be a string"),
        ({"guided_regex": "é" * 40_000}, "guided_regex", "80000 bytes"),
        ({"guided_choice": []}, "guided_choice", "1 to"),
        ({"guided_choice": "ab"}, "guided_choice", "a list of strings"),
        ({"guided_choice": ["a", 1]}, "guided_choice", "a list of strings"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "none of them empty"),
        ({"guided_choice": ["a"] * (MAX_CHOICES + 1)}, "guided_choice", "1 to"),
        ({"guided_grammar": []}, "guided_grammar", "must be a string"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex", "not both guided_json and"),
        (
            {"response_format": {"type": "json_object"}, "guided_choice": ["a"]},
            "guided_choice",
            "not both response_format",
        ),
    ],
)
def test_anything_else_is_refused_by_name(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        read(ChatRequest, orjson.dumps(chat(**fields)))
    assert refused.value.param == param
