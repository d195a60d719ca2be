"""All that torch owns on one worker: the model, the KV pool, the adapters' tensors.

Blocking, and bound to threads: steps run on the engine's thread, loads and drops on the loader's.
The engine core sees to it that no step uses an adapter that is being dropped.
"""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from anole_shared.errors import ConfigurationError
from anole_shared.ids import RequestId
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Drawn, Step
from anole_worker.leases import Region, RegionClient
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.grammar import GrammarRefused, Grammars
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.unpacking import warm_up
from anole_worker.runtime.weights import load_model, preferred_dtype
from anole_worker.settings import MAX_NUM_WAITING, WorkerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    loaded: LoadedAdapter
    region: Region


class Device:
    """The model on its device, ready to run steps."""

    def __init__(
        self, model_dir: Path, shape: ModelShape, settings: WorkerSettings, regions: RegionClient
    ) -> None:
        """Load the model; seconds. The KV pool takes address space now, memory as it is written.

        Raises:
            ConfigurationError: the memory is too small for a single block.
        """
        torch.set_num_threads(settings.num_threads)
        auto = settings.dtype == "auto"
        self._dtype = preferred_dtype() if auto else getattr(torch, settings.dtype)
        self.itemsize: int = self._dtype.itemsize
        """Bytes of a number in memory."""
        self.block_bytes = KvCache.bytes_per_token(shape, self._dtype) * settings.block_size
        num_blocks = settings.memory_bytes // self.block_bytes
        if num_blocks < 1:
            raise ConfigurationError(
                f"ANOLE_WORKER_MEMORY_BYTES is {settings.memory_bytes}, one block of this model's "
                f"keys and values takes {self.block_bytes}: raise it"
            )
        self._regions = regions
        self._held: dict[Adapter, _Held] = {}
        most = settings.max_num_seqs + MAX_NUM_WAITING
        self._grammars = Grammars(model_dir, shape, max_held=most)
        self._cache = KvCache(
            shape, num_blocks=num_blocks, block_size=settings.block_size, dtype=self._dtype
        )
        self._runner = ModelRunner(
            load_model(model_dir, dtype=self._dtype), self._cache, self._grammars
        )
        warm_up(self._dtype)
        with suppress(GrammarRefused):  # it has been logged; all else can be served
            self._grammars.load()
        log.info("%s, %d KV blocks of %d bytes", self._dtype, num_blocks, self.block_bytes)

    def run(self, step: Step) -> list[Drawn]:
        """Run one forward pass; what it brought to each row."""
        wanted = {row.adapter for row in step.rows if row.adapter is not None}
        return self._runner.run(step, {adapter: self._held[adapter].loaded for adapter in wanted})

    def give_back(self, blocks: tuple[int, ...]) -> None:
        """Give the memory of blocks that nobody uses back to the system."""
        self._cache.give_back(blocks)

    def prepare(self, request_id: RequestId, grammar: str) -> None:
        """Compile the grammar that a sequence's output must match.

        Raises:
            GrammarRefused: it cannot be.
        """
        self._grammars.prepare(request_id, grammar)

    def forget(self, request_id: RequestId) -> None:
        """A sequence that had a grammar has ended."""
        self._grammars.forget(request_id)

    def check_memory(self) -> None:
        """Raises MemdUnavailable where a lease would not even be answered."""
        self._regions.check()

    def load_adapter(self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]) -> None:
        """Lease a region and bring the adapter's weights into it.

        Raises:
            AnoleError: memd gives no region, or the files are no longer what was validated.
        """
        region = self._regions.lease(
            file.packed_bytes(self.itemsize), purpose=file.adapter_id, headers=headers
        )
        try:
            loaded = load(file, region.buffer, self._dtype)
        except BaseException:
            region.release()
            raise
        self._held[adapter] = _Held(loaded=loaded, region=region)

    def drop_adapter(self, adapter: Adapter) -> None:
        """Give the adapter's memory back."""
        held = self._held.pop(adapter)
        held.loaded.release()
        held.region.release()

    def close(self) -> None:
        """Give back all that is leased."""
        for adapter in list(self._held):
            self.drop_adapter(adapter)
        self._regions.close()
