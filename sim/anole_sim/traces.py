"""Production traces, read from wherever the user has put them; nothing of them ships here.

A trace is a CSV file (or .csv.gz) with a header, or JSON lines. Known columns, case and order
aside: `arrival_s`, `input_tokens`, `output_tokens`; those of Azure's LLM trace (TIMESTAMP,
ContextTokens, GeneratedTokens), of Mooncake (timestamp in ms, input_length, output_length) and of
BurstGPT (Timestamp, Request tokens, Response tokens). A trace without times has lengths only.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from anole_shared.errors import ConfigurationError

_INPUT = ("input_tokens", "contexttokens", "input_length", "request tokens", "num_prefill_tokens")
_OUTPUT = (
    "output_tokens", "generatedtokens", "output_length", "response tokens", "num_decode_tokens",
)  # fmt: skip
_SECONDS = ("arrival_s", "timestamp")

FILES: Mapping[str, tuple[str, ...]] = {
    "azure-conv": ("azure2023_conv.csv.gz", "AzureLLMInferenceTrace_conv.csv"),
    "mooncake": ("mooncake_conv.csv.gz", "conversation_trace.jsonl"),
    "sharegpt": ("sharegpt_lengths.csv.gz", "sharegpt_8k_filtered_stats_llama2_tokenizer.csv"),
    "arxiv": (
        "arxiv_summ_lengths.csv.gz",
        "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv",
    ),
    "lmsys": ("apex_lmsys05.csv.gz", "lmsys_05.csv"),
    "creation": ("apex_creation05.csv.gz", "creation_05.csv"),
    "gentd26": ("alibaba_gentd26_lora_ids.csv.gz", "lora_ids.csv"),
}
"""Known traces and the names that their files have; docs/simulation.md says where to get each."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """One request of a trace."""

    arrival_s: float
    input_tokens: int
    output_tokens: int


def find(name: str, folder: Path | None) -> Path:
    """The file of a named trace in the folder, or the path that the name is.

    Raises:
        ConfigurationError: there is none.
    """
    if name not in FILES:
        if Path(name).is_file():
            return Path(name)
        raise ConfigurationError(
            f"there is no trace {name!r}: give a file, or one of {', '.join(FILES)}"
        )
    places = [] if folder is None else [folder / file for file in FILES[name]]
    for place in places:
        if place.is_file():
            return place
    raise ConfigurationError(
        f"the trace {name!r} is a file {' or '.join(FILES[name])} in the folder that --traces (or "
        "ANOLE_TRACES) names; docs/simulation.md says where to get it"
    )


@cache
def read(path: Path) -> tuple[Lengths, ...]:
    """All requests of a trace; times count from the first one. A file is read once.

    Raises:
        ConfigurationError: the file has no columns that are known.
    """
    rows = _rows(path)
    found = [row for row in map(_lengths, rows) if row.input_tokens > 0 and row.output_tokens > 0]
    if not found:
        raise ConfigurationError(f"{path} has no requests")
    begin = min(row.arrival_s for row in found)
    found.sort(key=lambda row: row.arrival_s)
    return tuple(
        Lengths(row.arrival_s - begin, row.input_tokens, row.output_tokens) for row in found
    )


def read_adapters(path: Path) -> list[str]:
    """The adapter of each request, in order: the column `lora` (or `adapter`)."""
    found = [_first(row, ("lora", "adapter")) for row in _rows(path)]
    return [name for name in found if name is not None]


def _rows(path: Path) -> Iterable[Mapping[str, str]]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    text = data.decode()
    if ".jsonl" in path.name:
        for line in text.splitlines():
            row = json.loads(line)
            if isinstance(row.get("timestamp"), int | float):
                row["timestamp"] /= 1000
            yield {key.lower(): str(value) for key, value in row.items()}
        return
    for row in csv.DictReader(io.StringIO(text)):
        yield {key.strip().lower(): value for key, value in row.items()}


def _lengths(row: Mapping[str, str]) -> Lengths:
    given, made = _first(row, _INPUT), _first(row, _OUTPUT)
    if given is None or made is None:
        raise ConfigurationError(f"no columns of a trace among {', '.join(row)}")
    return Lengths(_seconds(_first(row, _SECONDS)), int(float(given)), int(float(made)))


def _seconds(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        return float(text)
    except ValueError:
        # Azure writes seven digits behind the point, one more than is understood.
        return datetime.fromisoformat(text[:26] + "+00:00").timestamp()


def _first(row: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((row[name] for name in names if name in row), None)
