"""The body of a request: read from the wire, and checked against the shape it must have."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, TypeVar

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from anole_gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedParameter

Neutral = Mapping[str, Sequence[object]]
"""Parameters that are not supported, with the values that change nothing and so are accepted."""


class Body(BaseModel):
    """What all bodies have in common. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)
    neutral: ClassVar[Neutral] = {}

    def check(self) -> None:
        """Look at fields that must fit each other.

        Raises:
            InvalidRequest: they don't.
        """


BodyT = TypeVar("BodyT", bound=Body)


async def receive(http_request: web.Request, *, max_bytes: int) -> bytes:
    """All of the request's body.

    Raises:
        InvalidRequest: it is compressed.
        BodyTooLarge: it has more than max_bytes.
    """
    if http_request.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidRequest("the body must not be compressed")
    try:
        return await http_request.read()
    except web.HTTPRequestEntityTooLarge:
        raise BodyTooLarge(
            f"the body is over {max_bytes} bytes, the most this gateway reads"
        ) from None


def read(shape: type[BodyT], body: bytes) -> BodyT:
    """The request in body.

    Raises:
        InvalidRequest: no JSON, or not of that shape; param names the field.
        UnsupportedParameter: it asks for what Anole does not do.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as fault:
        raise InvalidRequest(f"the body is not JSON: {fault}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object")
    try:
        request = shape.model_validate(fields)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(step) for step in first["loc"])
        raise InvalidRequest(f"{param}: {_sentence(first['msg'])}", param=param) from None
    _refuse_unsupported(fields, shape.neutral)
    request.check()
    return request


def _sentence(message: str) -> str:
    return message.removeprefix("Value error, ").replace("Input should", "should")


def _refuse_unsupported(fields: Mapping[str, object], neutral: Neutral) -> None:
    for name in sorted(fields.keys() & neutral.keys()):
        value = fields[name]
        if value is not None and not any(_is_same(value, one) for one in neutral[name]):
            raise UnsupportedParameter(
                f"{name} is not supported with this value; leave it out", param=name
            )


def _is_same(value: object, other: object) -> bool:
    """Equal, where false is not 0 and true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
