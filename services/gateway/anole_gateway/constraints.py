"""What an answer must look like, as clients may ask for it: OpenAI's and vLLM's words. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import orjson
from pydantic import PlainValidator

from anole_gateway.bodies import Body
from anole_gateway.errors import InvalidRequest

MAX_SOURCE_BYTES = 64 * 1024
MAX_CHOICES = 1024

_REGEX_SYNTAX = frozenset(r"\.+*?()|[]{}^$#&-~/")
"""Rust's regular expressions: https://docs.rs/regex/latest/regex/#syntax"""

_ANY_OBJECT = '{"type":"object"}'


class Language(StrEnum):
    """What a constraint is written in."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    """Lark or GBNF."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What the whole answer must match."""

    language: Language
    source: str


def _source(language: Language, text: object) -> Constraint:
    if not isinstance(text, str) or not text:
        raise ValueError(f"a {language} must be a string, and not empty")
    num_bytes = len(text.encode())
    if num_bytes > MAX_SOURCE_BYTES:
        raise ValueError(f"it has {num_bytes} bytes; at most {MAX_SOURCE_BYTES} are read")
    return Constraint(language=language, source=text)


def _schema(value: object) -> Constraint:
    """A JSON schema as an object, or as the text of one."""
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as fault:
            raise ValueError(f"the schema is not JSON: {fault}") from None
    if not isinstance(value, dict):
        raise ValueError("the schema must be an object")  # noqa: TRY004
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise ValueError("the schema is nested too deeply") from None
    return _source(Language.JSON_SCHEMA, text)


def _regex(value: object) -> Constraint:
    return _source(Language.REGEX, value)


def _grammar(value: object) -> Constraint:
    return _source(Language.GRAMMAR, value)


def _choice(value: object) -> Constraint:
    """One of some texts: a regular expression, because many alternatives cost a grammar more."""
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise ValueError("choices must be a list of strings, none of them empty")
    if not 0 < len(value) <= MAX_CHOICES:
        raise ValueError(f"there must be 1 to {MAX_CHOICES} choices, not {len(value)}")
    return _regex("|".join(map(_escaped, value)))


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in _REGEX_SYNTAX else char for char in text)


def _json_object(value: object) -> Constraint | None:
    if not isinstance(value, bool):
        raise ValueError("json_object must be true or false")  # noqa: TRY004
    return Constraint(language=Language.JSON_SCHEMA, source=_ANY_OBJECT) if value else None


def _response_format(value: object) -> Constraint | None:
    """OpenAI's response_format; name and strict change nothing, a schema is always kept."""
    asked = value if isinstance(value, dict) else {}
    kind = asked.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return _json_object(value=True)
    if kind != "json_schema":
        raise ValueError('must be {"type": ...} with text, json_object or json_schema')
    inside = asked.get("json_schema")
    if not isinstance(inside, dict) or "schema" not in inside:
        raise ValueError('type json_schema needs "json_schema": {"schema": {...}}')
    return _schema(inside["schema"])


_KINDS: dict[str, Callable[[object], Constraint | None]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _json_object,
}


def _structured_outputs(value: object) -> Constraint | None:
    """The field of that name that vLLM knows."""
    asked = value if isinstance(value, dict) else {}
    found = [kind for kind in _KINDS if asked.get(kind) is not None]
    if len(found) != 1:
        raise ValueError(f"must be an object with exactly one of {', '.join(_KINDS)}")
    return _KINDS[found[0]](asked[found[0]])


def _optional(read: Callable[[object], Constraint | None]) -> PlainValidator:
    def validate(value: object) -> Constraint | None:
        return None if value is None else read(value)

    return PlainValidator(validate)


class Constrained(Body):
    """The fields of a request that may constrain its answer."""

    response_format: Annotated[Constraint | None, _optional(_response_format)] = None
    structured_outputs: Annotated[Constraint | None, _optional(_structured_outputs)] = None
    guided_json: Annotated[Constraint | None, _optional(_schema)] = None
    guided_regex: Annotated[Constraint | None, _optional(_regex)] = None
    guided_choice: Annotated[Constraint | None, _optional(_choice)] = None
    guided_grammar: Annotated[Constraint | None, _optional(_grammar)] = None

    def check(self) -> None:
        super().check()
        names = self.constraining
        if len(names) > 1:
            raise InvalidRequest(
                f"an answer has one constraint, not both {names[0]} and {names[1]}", param=names[1]
            )

    @property
    def constraining(self) -> list[str]:
        """The fields that are set."""
        return [name for name in Constrained.model_fields if getattr(self, name) is not None]

    @property
    def constraint(self) -> Constraint | None:
        """What was asked for, if anything was."""
        found: list[Constraint] = [getattr(self, name) for name in self.constraining]
        return found[0] if found else None
