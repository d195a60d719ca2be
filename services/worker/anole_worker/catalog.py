"""The adapters that this worker can serve, as its folder has them now."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anole_shared.ids import AdapterId
from anole_shared.messages import AdapterRecord
from anole_shared.units import region_bytes
from anole_worker import adapter_files
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.errors import AdapterRefused, UnknownAdapter
from anole_worker.model_shape import ModelShape
from anole_worker.translate import record_of, refused_record

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An adapter's validated files, and what the engine knows of it."""

    file: AdapterFile
    adapter: Adapter


class Catalog:
    """Validated adapters by name. It notices those that are replaced, added and removed.

    scan() and find() read the folder, so they block; every method may be called from any thread.
    """

    def __init__(
        self,
        root: Path | None,
        shape: ModelShape,
        *,
        bytes_of: Callable[[AdapterFile], int],
        max_bytes: int,
    ) -> None:
        """root: the folder, None for no adapters.

        bytes_of: an adapter's weights in memory. max_bytes: larger adapters are refused.
        """
        self._root = root
        self._shape = shape
        self._bytes_of = bytes_of
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._entries: dict[AdapterId, Entry] = {}
        self._refused: dict[str, str] = {}
        self._shown: Mapping[AdapterId, Entry] = {}
        """The entries for who does not wait: replaced as a whole, so that none seems to be gone."""
        self.version = 0
        """Changes with the content."""

    def records(self) -> tuple[AdapterRecord, ...]:
        """All adapters, those that are refused included, for the registry."""
        with self._lock:
            served = [record_of(entry.file, entry.adapter) for entry in self._entries.values()]
            refused = [refused_record(name, reason) for name, reason in self._refused.items()]
        return (*served, *refused)

    def known(self, adapter_id: AdapterId) -> Entry | None:
        """The adapter as it was last seen; looks at no file."""
        return self._shown.get(adapter_id)

    def scan(self) -> None:
        """Read the folder; files that have not changed are not read again.

        Raises:
            ConfigurationError: the folder cannot be listed, or holds too many adapters.
        """
        if self._root is None:
            return
        with self._lock:
            known = [entry.file for entry in self._entries.values()]
            files, refused = adapter_files.discover(self._root, self._shape, known=known)
            before = (self._entries, self._refused)
            self._entries, self._refused = {}, {}
            for name, reason in refused:
                self._refuse(name, reason, is_new=before[1].get(name) != reason)
            for file in files:
                self._list(file)
            self._shown = dict(self._entries)
            if (self._entries, self._refused) != before:
                self.version += 1
                log.info("%d adapters in %s", len(self._entries), self._root)

    def find(self, adapter_id: AdapterId) -> Entry:
        """The adapter as it is on disk at this moment.

        Raises:
            UnknownAdapter: there is no such adapter that can be served; the message says why.
        """
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is not None and adapter_files.is_unchanged(entry.file):
                return entry
            found = self._look(adapter_id)
            self._shown = dict(self._entries)
            if found is None:
                reason = self._refused.get(adapter_id, "it is not in this worker's adapter folder")
                raise UnknownAdapter(f"adapter {adapter_id!r} cannot be served: {reason}")
            return found

    def _look(self, adapter_id: AdapterId) -> Entry | None:
        """Read one adapter's files, which are new or have changed."""
        was_there = self._entries.pop(adapter_id, None) is not None
        file = None
        if self._root is not None and adapter_files.is_id(adapter_id):
            folder = self._root / adapter_id
            try:
                file = adapter_files.inspect(folder, self._root, self._shape)
            except AdapterRefused as fault:
                name, reason = adapter_files.told(folder, fault)
                self._refuse(name, reason, is_new=self._refused.get(name) != reason)
        if file is not None:
            log.info("adapter %s is new or was replaced", adapter_id)
            self._list(file)
        if was_there or file is not None:
            self.version += 1
        return self._entries.get(adapter_id)

    def _list(self, file: AdapterFile) -> None:
        num_bytes = region_bytes(self._bytes_of(file))
        if num_bytes > self._max_bytes:
            reason = (
                f"takes {num_bytes} bytes, the worker's memory is {self._max_bytes}: raise "
                "ANOLE_WORKER_MEMORY_BYTES"
            )
            self._refuse(file.adapter_id, reason, is_new=True)
            return
        adapter = Adapter(
            adapter_id=file.adapter_id,
            generation=file.generation,
            num_bytes=num_bytes,
            rank=file.rank,
        )
        self._refused.pop(file.adapter_id, None)
        self._entries[file.adapter_id] = Entry(file=file, adapter=adapter)

    def _refuse(self, name: str, reason: str, *, is_new: bool) -> None:
        self._refused[name] = reason
        if is_new:
            log.error("adapter %s in %s is refused: %s", name, self._root, reason)
