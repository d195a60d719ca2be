"""Adapters on disk: finds PEFT directories and proves each one before any tensor is made of it.

A directory is whatever a user put there. It is read, never run: only safetensors, no pickle; no
link leads out of it; every size is bounded and every claim is checked against the base model.
"""

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from anole_shared.errors import ConfigurationError
from anole_shared.ids import AdapterId
from anole_worker import adapter_config
from anole_worker.adapter_config import CONFIG_NAME
from anole_worker.adapter_tensors import ModuleTensors, match_modules
from anole_worker.errors import AdapterRefused
from anole_worker.model_shape import MODULE_PATHS, ModelShape
from anole_worker.safetensors_header import read_spans

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_ADAPTERS = 10_000
MAX_REFUSED_NAME_CHARS = 128
MAX_REASON_CHARS = 500

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)
_PIECE_BYTES = 1024 * 1024
_PASSED_OVER = frozenset({"lost+found"})
"""Made by a file system at its root, and for nobody else to read."""
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

Fingerprint = tuple[int, int, int]
"""A file's inode, size and time of change: differs once the file was written or replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """A validated adapter; its weights are still on disk."""

    adapter_id: AdapterId
    path: Path
    """The directory."""
    shape: ModelShape
    """The base model that it was checked against."""
    rank: int
    """The largest of its modules' ranks."""
    target_modules: tuple[str, ...]
    num_weights: int
    """Numbers in all its tensors."""
    stored: str
    """The safetensors type of all its tensors; F32, which holds any other's, where they differ."""
    generation: str
    """Changes with the content."""
    fingerprints: tuple[Fingerprint, Fingerprint]
    """Of the configuration and of the weights."""

    def packed_bytes(self, itemsize: int) -> int:
        """Memory of its weights where each number takes itemsize bytes."""
        return self.num_weights * itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAdapter:
    """An adapter's directory while its weights file is open for reading."""

    weights_path: Path
    config_bytes: bytes
    config_fingerprint: Fingerprint
    modules: tuple[ModuleTensors, ...]
    """By layer, then in the order of SITES."""
    descriptor: int

    def fingerprints(self) -> tuple[Fingerprint, Fingerprint]:
        """Of the configuration when it was read, and of the weights as they are now."""
        return (self.config_fingerprint, _fingerprint(os.fstat(self.descriptor)))

    def read_into(self, begin: int, buffer: memoryview) -> None:
        """Read the bytes from begin on; raises AdapterRefused when the file ends before they do."""
        if os.preadv(self.descriptor, [buffer], begin) != buffer.nbytes:
            raise AdapterRefused(self.weights_path, "it was cut short; save the adapter again")

    def content(self) -> Iterator[bytes]:
        """All that makes the adapter what it is, piece by piece."""
        yield self.config_bytes
        offset = 0
        while piece := os.pread(self.descriptor, _PIECE_BYTES, offset):
            yield piece
            offset += len(piece)


def read(folder: Path, shape: ModelShape) -> AdapterFile:
    """Validate a PEFT directory against the base model and hash its content.

    Raises AdapterRefused, which names the file, what is wrong with it and what to do.
    """
    if not is_id(folder.name):
        raise AdapterRefused(
            folder,
            "its name is no adapter id; rename the folder to at most 128 letters, digits and "
            "the characters . _ - without a dot in front",
        )
    with opened(folder, shape) as adapter:
        modules, fingerprints = adapter.modules, adapter.fingerprints()
        generation = hashlib.sha256()
        for piece in adapter.content():
            generation.update(piece)
        if adapter.fingerprints() != fingerprints:
            raise AdapterRefused(adapter.weights_path, "it changed while it was read; try again")
        return AdapterFile(
            adapter_id=AdapterId(folder.name),
            path=folder,
            shape=shape,
            rank=max(tensors.rank for tensors in modules),
            target_modules=tuple(
                module for module in MODULE_PATHS if any(t.module == module for t in modules)
            ),
            num_weights=sum(tensors.num_weights for tensors in modules),
            stored=_stored(modules),
            generation=generation.hexdigest()[:16],
            fingerprints=fingerprints,
        )


def _stored(modules: Iterable[ModuleTensors]) -> str:
    found = {span.dtype for tensors in modules for span in (tensors.a, tensors.b)}
    return found.pop() if len(found) == 1 else "F32"


def discover(
    root: Path, shape: ModelShape, *, known: Iterable[AdapterFile] = ()
) -> tuple[list[AdapterFile], list[tuple[str, str]]]:
    """Validate every adapter under a folder: those that can be used, and name and reason of others.

    What is no directory, or has neither configuration nor weights of an adapter, is passed over.
    An adapter among `known` whose files are unchanged is taken as it is, without reading it again.
    Names and reasons of refused ones are printable and short, and the reasons name files from the
    adapter's folder on, so that they may be shown to anyone.

    Raises ConfigurationError when the root cannot be listed or holds more than MAX_ADAPTERS.
    """
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in islice(filter(_may_hold, entries), MAX_ADAPTERS + 1)]
    except OSError as error:
        raise ConfigurationError(
            f"adapter folder {root} cannot be listed ({error.strerror}): create it or correct the "
            "setting"
        ) from error
    if len(names) > MAX_ADAPTERS:
        raise ConfigurationError(
            f"adapter folder {root} holds more than {MAX_ADAPTERS} folders: spread them over "
            "several workers"
        )
    by_path = {file.path: file for file in known if file.shape == shape}
    found: list[AdapterFile] = []
    refused: list[tuple[str, str]] = []
    for folder in (root / name for name in sorted(names)):
        try:
            known_file = by_path.get(folder)
            if known_file is not None and is_unchanged(known_file):
                found.append(known_file)
            elif (file := inspect(folder, root, shape)) is not None:
                found.append(file)
        except AdapterRefused as error:
            refused.append(told(folder, error))
    return found, refused


def inspect(folder: Path, root: Path, shape: ModelShape) -> AdapterFile | None:
    """Validate one adapter under the root; None where there is none.

    Raises AdapterRefused.
    """
    try:
        names = (CONFIG_NAME, WEIGHTS_NAME, PICKLE_NAME)
        if not any(_is_there(folder / name) for name in names):
            return None
        _check_inside(folder, root)
        return read(folder, shape)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _may_hold(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder to look into; one that cannot be told is, to be refused."""
    try:
        return entry.name not in _PASSED_OVER and entry.is_dir()
    except OSError:
        return True


def _is_there(path: Path) -> bool:
    """Whether a file is there; raises AdapterRefused where that cannot be told."""
    try:
        path.stat()
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise _unreadable(path, error) from error
    return True


def _unreadable(path: Path, error: OSError) -> AdapterRefused:
    remedy = "make it readable, e.g. chmod -R a+rX"
    if not isinstance(error, PermissionError):
        remedy = "mend that, or save the adapter with PEFT's save_pretrained"
    return AdapterRefused(path, f"it cannot be read ({error.strerror}): {remedy}")


def told(folder: Path, error: AdapterRefused) -> tuple[str, str]:
    """A refused folder's name and the reason, without the path that leads to the folder."""
    reason = error.reason
    if error.path != folder:
        reason = f"{error.path.relative_to(folder)}: {reason}"
    return _printable(folder.name, MAX_REFUSED_NAME_CHARS), _printable(reason, MAX_REASON_CHARS)


def _printable(text: str, max_chars: int) -> str:
    """What may be logged, encoded and shown; a cut is marked, so that no cut name is an id."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
    return shown if len(shown) <= max_chars else f"{shown[: max_chars - 1]}\N{HORIZONTAL ELLIPSIS}"


@contextmanager
def opened(folder: Path, shape: ModelShape) -> Iterator[OpenAdapter]:
    """Open an adapter's weights, having checked its configuration and the weights' header.

    Raises AdapterRefused.
    """
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    with _opened(folder, CONFIG_NAME) as descriptor:
        config_fingerprint = _fingerprint(os.fstat(descriptor))
        config_bytes = os.pread(descriptor, MAX_CONFIG_BYTES + 1, 0)
    if len(config_bytes) > MAX_CONFIG_BYTES:
        raise AdapterRefused(
            config_path, f"it is longer than {MAX_CONFIG_BYTES} bytes; save the adapter again"
        )
    config = adapter_config.parse(config_bytes, config_path)
    if not _is_there(weights_path) and _is_there(folder / PICKLE_NAME):
        raise AdapterRefused(
            folder / PICKLE_NAME,
            "it is a pickle, which can run code, so it is not read; convert it to "
            f"{WEIGHTS_NAME} (load it with PEFT and save_pretrained(safe_serialization=True))",
        )
    with _opened(folder, WEIGHTS_NAME) as descriptor:
        spans = read_spans(descriptor, weights_path)
        yield OpenAdapter(
            weights_path=weights_path,
            config_bytes=config_bytes,
            config_fingerprint=config_fingerprint,
            modules=match_modules(spans, config, shape, weights_path),
            descriptor=descriptor,
        )


@contextmanager
def _opened(folder: Path, name: str) -> Iterator[int]:
    path = folder / name
    try:
        target = path.resolve(strict=True)
        if not target.is_relative_to(folder.resolve(strict=True)):
            raise AdapterRefused(path, "it is a link that leads out of its folder; copy the file")
        # A link or pipe put here since then is not followed and does not block.
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    except RuntimeError as error:
        raise AdapterRefused(
            path, "it cannot be read (a link to itself): save the adapter again"
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise AdapterRefused(path, "it is no regular file; save the adapter again")
        yield descriptor
    finally:
        os.close(descriptor)


def _check_inside(folder: Path, root: Path) -> None:
    if not folder.resolve().is_relative_to(root.resolve()):
        raise AdapterRefused(folder, "it is a link that leads out of the adapter folder; copy it")


def _fingerprint(status: os.stat_result) -> Fingerprint:
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def is_unchanged(file: AdapterFile) -> bool:
    """Whether the files are still those that were validated."""
    try:
        now = tuple(_fingerprint((file.path / n).stat()) for n in (CONFIG_NAME, WEIGHTS_NAME))
    except OSError:
        return False
    return now == file.fingerprints


def is_id(name: str) -> bool:
    """Whether an adapter can bear the name; such a name never leads out of a folder."""
    return _ID.fullmatch(name) is not None
