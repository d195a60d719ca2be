"""Journal: the ledger's records on disk, so that a memd that was killed finds its ledger again.

One line holds one batch of records: a CRC-32 of the rest in hex, a space, and a JSON array. The
first line is a header; it names the boot, because no region outlives one. What is true is the
longest prefix of lines that are whole: a batch is in or it is not.
"""

import errno
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from anole_memd.core.ledger import Ledger
from anole_memd.core.records import Record
from anole_memd.errors import BadRecord, JournalFull
from anole_shared.errors import ConfigurationError
from anole_shared.units import KiB

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_FORMAT = 1
_CRC_CHARS = 8
_COMPACT_BYTES = 256 * KiB
_COMPACT_FACTOR = 4
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}

Snapshot = Callable[[], Sequence[Record]]

_batch: TypeAdapter[tuple[Record, ...]] = TypeAdapter(
    tuple[Annotated[Record, Field(discriminator="type")], ...]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A journal's first line."""

    boot_id: str
    backend: str
    """Another backend's regions cannot be found again."""
    format: Literal[1] = 1


_header: TypeAdapter[Header] = TypeAdapter(Header)


class Journal:
    """The file, open for appending. Every append is on disk when it returns.

    Where the disk is full, appending is refused and the file is as before.
    """

    def __init__(self, path: Path, header: Header, snapshot: Snapshot) -> None:
        """snapshot: the records that make the ledger as it is; for compaction."""
        self._path = path
        self._header = header
        self._snapshot = snapshot
        self._file = -1
        self._size = 0
        self._compact_at = _COMPACT_BYTES

    @property
    def num_bytes(self) -> int:
        """The file's size."""
        return self._size

    @property
    def is_long(self) -> bool:
        """Whether it is time to rewrite it."""
        return self._size > self._compact_at

    def rewrite(self) -> None:
        """Write the ledger as it is now to a new file, which takes the old one's place.

        Raises:
            JournalFull: the disk has no room; the old file is as before.
            ConfigurationError: the file may not be written at all.
        """
        fresh = self._path.with_name(f"{self._path.name}.new")
        lines = _line(orjson.dumps(self._header)) + _line(orjson.dumps(self._snapshot()))
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                file = self._replaced(fresh, lines)
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as fault:
            self._compact_at = max(self._compact_at, 2 * self._size)
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise self._fault(fault) from fault
        self.close()
        self._file, self._size = file, len(lines)
        self._compact_at = max(_COMPACT_BYTES, _COMPACT_FACTOR * len(lines))

    def append(self, records: Sequence[Record]) -> None:
        """Put one batch at the end, on disk.

        Raises:
            JournalFull: the disk has no room; the file is as before.
            ConfigurationError: the file cannot be written any more.
        """
        line = _line(orjson.dumps(records))
        try:
            _write(self._file, line)
            os.fsync(self._file)
        except OSError as fault:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, 0, os.SEEK_END)
            raise self._fault(fault) from fault
        self._size += len(line)

    def _replaced(self, fresh: Path, lines: bytes) -> int:
        """The descriptor of a new file that has taken the old one's place."""
        how = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        file = os.open(fresh, how, 0o600)
        try:
            _write(file, lines)
            os.fsync(file)
            fresh.replace(self._path)
        except OSError:
            os.close(file)
            raise
        return file

    def _fault(self, fault: OSError) -> JournalFull | ConfigurationError:
        if fault.errno in _NO_ROOM:
            return JournalFull(
                f"no room for memd's journal {self._path} ({fault.strerror}): free some disk space "
                "there, or set ANOLE_MEMD_JOURNAL to a path that has some"
            )
        if fault.errno in _NO_DESCRIPTORS:
            return JournalFull(
                f"memd's journal {self._path} cannot be written anew now ({fault.strerror}): "
                "raise the limit of open files (ulimit -n), or release leases"
            )
        return ConfigurationError(
            f"memd's journal {self._path} cannot be written ({fault.strerror}): set "
            "ANOLE_MEMD_JOURNAL to a path that this user may write"
        )

    def close(self) -> None:
        """Let go of the file; it stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def replay(path: Path, header: Header, ledger: Ledger) -> int:
    """Apply what the journal at path holds to an empty ledger; how many batches that were.

    Nothing of a journal of another boot or another backend is applied: its regions are gone, or
    cannot be reached. The rest of a journal behind the first line that is not whole is ignored, and
    told in the log.

    Raises:
        ConfigurationError: the file is there and cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    except OSError as fault:
        raise ConfigurationError(
            f"memd's journal {path} cannot be read ({fault.strerror}): make it readable, or set "
            "ANOLE_MEMD_JOURNAL to another path"
        ) from fault
    first, *lines = content.split(b"\n")
    if not _is_of(first, header):
        log.warning("%s is of another boot or backend, or no journal: it is begun anew", path)
        return 0
    num_batches = 0
    for line in lines[:-1]:
        try:
            ledger.apply(_batch.validate_json(_checked(line)))
        except (BadRecord, ValueError) as fault:
            log.warning("%s is good up to line %d only: %s", path, num_batches + 1, fault)
            return num_batches
        num_batches += 1
    if lines and lines[-1]:
        log.warning("%s ends in the middle of line %d: left out", path, num_batches + 2)
    return num_batches


def boot_id(path: Path = BOOT_ID) -> str:
    """The kernel's name of this boot; empty where it has none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _is_of(line: bytes, header: Header) -> bool:
    try:
        return _header.validate_json(_checked(line)) == header
    except ValidationError:
        return False
    except BadRecord:
        return False


def _checked(line: bytes) -> bytes:
    """What a line holds; raises BadRecord where it does not match its checksum."""
    body = line[_CRC_CHARS + 1 :]
    if line[: _CRC_CHARS + 1] != b"%08x " % zlib.crc32(body):
        raise BadRecord("a checksum does not match")
    return body


def _line(body: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _write(file: int, content: bytes) -> None:
    """All of it, or OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
