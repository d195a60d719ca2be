"""Messages and records to bytes and back.

orjson writes (it knows dataclasses), pydantic checks what is read. A body of another version or
with an unknown tag is an error, never a guess.
"""

from typing import Annotated, Any, TypeVar, cast

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from anole_shared.errors import MessageError
from anole_shared.messages import MAX_DATAGRAM_BYTES, MemoryMessage, Message

SCHEMA_VERSION = 1
"""Goes up when an old reader would misread a new message; carried beside each message."""

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
"""Longer bodies are refused before they are parsed."""

RecordT = TypeVar("RecordT")

_message: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])
_memory_message: TypeAdapter[MemoryMessage] = TypeAdapter(
    Annotated[MemoryMessage, Field(discriminator="type")]
)
_readers: dict[type, TypeAdapter[Any]] = {}


def encode(message: object) -> bytes:
    """A message or a record (any dataclass of anole_shared.messages) as JSON."""
    return orjson.dumps(message)


def decode(body: bytes, *, schema_version: int = SCHEMA_VERSION) -> Message:
    """The message in body.

    Raises:
        MessageError: another schema version, too long, no JSON, or no message of ours.
    """
    if schema_version != SCHEMA_VERSION:
        raise MessageError(
            f"message of schema {schema_version}, this service speaks {SCHEMA_VERSION}: "
            "run the same Anole version everywhere"
        )
    if len(body) > MAX_MESSAGE_BYTES:
        raise MessageError(f"message of {len(body)} bytes is over the {MAX_MESSAGE_BYTES} limit")
    try:
        return _message.validate_json(body)
    except ValidationError as fault:
        raise MessageError(f"not a message: {fault.errors(include_input=False)[:3]}") from fault


def decode_memory(datagram: bytes) -> MemoryMessage:
    """The message in one datagram of memd's socket.

    Raises:
        MessageError: too long, no JSON, or no message of that socket.
    """
    if len(datagram) > MAX_DATAGRAM_BYTES:
        raise MessageError(f"datagram is over the {MAX_DATAGRAM_BYTES} bytes limit")
    try:
        return _memory_message.validate_json(datagram)
    except ValidationError as fault:
        raise MessageError(f"not a message: {fault.errors(include_input=False)[:3]}") from fault


def decode_record(record_type: type[RecordT], body: bytes) -> RecordT:
    """The store's record in body.

    Raises:
        MessageError: the bytes are no such record (written by another version, or by hand).
    """
    reader = _readers.get(record_type)
    if reader is None:
        reader = _readers[record_type] = TypeAdapter(record_type)
    try:
        return cast("RecordT", reader.validate_json(body))
    except ValidationError as fault:
        raise MessageError(f"not a {record_type.__name__}: {fault.error_count()} faults") from fault
