"""Where the tensors lie in a safetensors file, with every claim of its header checked.

The format: https://github.com/huggingface/safetensors#format. Eight bytes give the length of a
JSON object that gives each tensor's type, shape and range of bytes; the data follow without gaps.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anole_worker.errors import AdapterRefused

ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER_BYTES = 4 * 1024 * 1024

_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_REMEDY = "save the adapter again with PEFT's save_pretrained"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpan:
    """One tensor's place in its file: `begin` and `end` are offsets in bytes from the start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_spans(descriptor: int, path: Path) -> list[TensorSpan]:
    """The tensors of an open safetensors file, in the order of their bytes.

    Raises AdapterRefused, naming `path`, when the header is broken or does not fit the file.
    """
    file_bytes = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, _LENGTH_BYTES, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES or not 0 < length <= file_bytes - _LENGTH_BYTES:
        raise AdapterRefused(path, f"it is no safetensors file or was cut short; {_REMEDY}")
    if length > MAX_HEADER_BYTES:
        raise AdapterRefused(path, f"its header is longer than {MAX_HEADER_BYTES} bytes; {_REMEDY}")
    data_begin = _LENGTH_BYTES + length
    header = _parse_header(os.pread(descriptor, length, _LENGTH_BYTES), path)
    spans = [_span(name, entry, data_begin, path) for name, entry in header.items()]
    spans.sort(key=lambda span: (span.begin, span.end))
    _check_coverage(spans, data_begin, file_bytes, path)
    return spans


def _parse_header(header: bytes, path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(path, f"its header is no JSON; {_REMEDY}") from error
    if not isinstance(entries, dict):
        raise AdapterRefused(path, f"its header is no JSON object; {_REMEDY}")
    entries.pop(_METADATA, None)
    return entries


def _span(name: str, entry: object, data_begin: int, path: Path) -> TensorSpan:
    fields = entry if isinstance(entry, dict) else {}
    dtype = str(fields.get("dtype"))
    if dtype not in ITEM_BYTES:
        raise AdapterRefused(
            path, f"{name} has type {dtype}; convert it to one of {', '.join(ITEM_BYTES)}"
        )
    try:
        shape, (begin, end) = _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    except ValueError as error:
        raise AdapterRefused(path, f"its entry for {name} is malformed; {_REMEDY}") from error
    if end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise AdapterRefused(path, f"the bytes of {name} do not match its shape; {_REMEDY}")
    return TensorSpan(
        name=name,
        dtype=dtype,
        shape=shape,
        begin=data_begin + begin,
        end=data_begin + end,
    )


def _sizes(value: object) -> tuple[int, ...]:
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    raise ValueError("no list of sizes")


def _check_coverage(spans: list[TensorSpan], data_begin: int, file_bytes: int, path: Path) -> None:
    """Gaps and overlaps are forbidden by the format: they could hide what nobody looked at."""
    position = data_begin
    for span in spans:
        if span.begin != position:
            raise AdapterRefused(path, f"{span.name} overlaps or leaves a gap; {_REMEDY}")
        position = span.end
    if position != file_bytes:
        raise AdapterRefused(
            path,
            f"its tensors take {position} bytes but the file has {file_bytes}; it was cut short "
            f"or extended; {_REMEDY}",
        )
