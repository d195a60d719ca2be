"""All that torch owns on one worker: the model, the KV pool, the adapters' tensors.

Blocking, and bound to threads: steps run on the engine's thread, loads and drops on the loader's.
The engine core sees to it that no step uses an adapter that is being dropped.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from anole_shared.errors import ConfigurationError
from anole_shared.ids import AdapterId
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.step import Step
from anole_worker.leases import Region, RegionClient
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.adapters import LoadedAdapter, load
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.weights import load_model
from anole_worker.settings import WorkerSettings

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
            ConfigurationError: the KV pool is too small for a single block.
        """
        torch.set_num_threads(settings.num_threads)
        block_bytes = KvCache.bytes_per_token(shape) * settings.block_size
        self.num_blocks = settings.kv_cache_bytes // block_bytes
        if self.num_blocks < 1:
            raise ConfigurationError(
                f"ANOLE_WORKER_KV_CACHE_BYTES is {settings.kv_cache_bytes}, one block of this "
                f"model takes {block_bytes}: raise it"
            )
        self._regions = regions
        self._held: dict[AdapterId, _Held] = {}
        cache = KvCache(shape, num_blocks=self.num_blocks, block_size=settings.block_size)
        self._runner = ModelRunner(load_model(model_dir), cache)

    def run(self, step: Step) -> list[int | None]:
        """Run one forward pass; the token drawn for each row that asks for one."""
        wanted = {row.adapter_id for row in step.rows if row.adapter_id is not None}
        return self._runner.run(step, {name: self._held[name].loaded for name in wanted})

    def check_memory(self) -> None:
        """Raises MemdUnavailable where a lease would not even be answered."""
        self._regions.check()

    def load_adapter(self, file: AdapterFile, headers: Mapping[str, str]) -> None:
        """Lease a region and bring the adapter's weights into it.

        Raises:
            AnoleError: memd gives no region, or the files are no longer what was validated.
        """
        region = self._regions.lease(file.packed_bytes, purpose=file.adapter_id, headers=headers)
        try:
            loaded = load(file, region.buffer)
        except BaseException:
            region.release()
            raise
        self._held[file.adapter_id] = _Held(loaded=loaded, region=region)

    def drop_adapter(self, adapter_id: AdapterId) -> None:
        """Give the adapter's memory back."""
        held = self._held.pop(adapter_id)
        held.loaded.release()
        held.region.release()

    def close(self) -> None:
        """Give back all that is leased."""
        for adapter_id in list(self._held):
            self.drop_adapter(adapter_id)
        self._regions.close()
