"""All that torch owns on one worker: the model, its keys and values, the adapters' tensors.

Blocking, and bound to threads: steps run on the engine's thread, loads and drops on the loader's.
The engine core sees to it that no step uses an adapter that is being dropped.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from anole_shared.clock import Clock
from anole_shared.errors import ConfigurationError
from anole_shared.ids import AdapterId, RequestId
from anole_worker.adapter_files import AdapterFile
from anole_worker.core import eviction
from anole_worker.core.adapter import Adapter
from anole_worker.core.host_tier import HostTier
from anole_worker.core.step import Drawn, Step
from anole_worker.leases import RegionClient
from anole_worker.model_shape import ModelShape
from anole_worker.runtime import accelerator
from anole_worker.runtime.adapter_memory import AdapterMemory, RegionAdapters, TieredAdapters
from anole_worker.runtime.cpu_runner import CpuRunner
from anole_worker.runtime.grammar import GrammarRefused, Grammars
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.packing import packing_on
from anole_worker.runtime.unpacking import warm_up
from anole_worker.runtime.weights import ModelWeights, load_model, preferred_dtype
from anole_worker.settings import MAX_NUM_WAITING, WorkerSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What differs between a processor and a GPU."""

    runner: ModelRunner
    give_back: Callable[[tuple[int, ...]], None]
    compact: Callable[[], int]
    adapters: AdapterMemory
    memory_bytes: int


class Device:
    """The model on its device, ready to run steps."""

    def __init__(
        self,
        model_dir: Path,
        shape: ModelShape,
        settings: WorkerSettings,
        regions: RegionClient,
        clock: Clock,
    ) -> None:
        """Load the model; seconds. Blocks take memory as they are used.

        clock: for how long ago a copy in host memory was used.

        Raises:
            ConfigurationError: there is no such device, or its memory is too small for a block.
        """
        torch.set_num_threads(settings.num_threads)
        target = self._target = accelerator.choose(settings.device)
        accelerator.take(target)
        self.is_on_cpu = target.type == "cpu"
        auto = settings.dtype == "auto"
        self._dtype = preferred_dtype(target) if auto else getattr(torch, settings.dtype)
        self._packing = packing_on(target, self._dtype)
        self.block_bytes = KvCache.bytes_per_token(shape, self._dtype) * settings.block_size
        if self.is_on_cpu:
            self._check_memory_bytes(accelerator.memory_bytes(settings, None))
        self._regions = regions
        most = settings.max_num_seqs + MAX_NUM_WAITING
        self._grammars = Grammars(model_dir, shape, max_held=most)
        weights = load_model(model_dir, dtype=self._dtype, device=target)
        make = self._on_cpu if self.is_on_cpu else self._on_gpu
        self._parts = make(weights, settings, clock)
        self.memory_bytes = self._parts.memory_bytes
        """What blocks and adapters share."""
        self._check_memory_bytes(self.memory_bytes)
        warm_up(self._packing.dtypes)
        with suppress(GrammarRefused):  # it has been logged; all else can be served
            self._grammars.load()
        num_blocks = self.memory_bytes // self.block_bytes
        log.info(
            "%s, %s, %d KV blocks of %d bytes", target, self._dtype, num_blocks, self.block_bytes
        )

    def _check_memory_bytes(self, memory_bytes: int) -> None:
        if memory_bytes < self.block_bytes:
            raise ConfigurationError(
                f"ANOLE_WORKER_MEMORY_BYTES is {memory_bytes}, one block of this model's "
                f"keys and values takes {self.block_bytes}: raise it"
            )

    def _on_cpu(self, weights: ModelWeights, settings: WorkerSettings, _: Clock) -> _Parts:
        memory_bytes = accelerator.memory_bytes(settings, None)
        num_blocks = memory_bytes // self.block_bytes
        cpu = CpuRunner(weights, settings, self._grammars, num_blocks)
        cpu.warm_up()
        return _Parts(
            runner=cpu.runner,
            give_back=cpu.cache.give_back,
            compact=lambda: 0,  # the processor's memory is mapped by the page anyway
            adapters=RegionAdapters(self._regions, self._packing),
            memory_bytes=memory_bytes,
        )

    def _on_gpu(self, weights: ModelWeights, settings: WorkerSettings, clock: Clock) -> _Parts:
        """Has not been run on one yet; what it puts together has, but for graphs and uploads."""
        from anole_worker.runtime.decode_graphs import CudaRecorder
        from anole_worker.runtime.gpu_runner import GpuRunner
        from anole_worker.runtime.upload import Uploader

        target = weights.embedding.device
        recorder = CudaRecorder(target) if settings.cuda_graphs else None
        gpu = GpuRunner(weights, settings, self._grammars, recorder)
        torch.cuda.reset_peak_memory_stats(target)
        gpu.warm_up()
        peak_bytes = torch.cuda.max_memory_allocated(target)
        free_bytes = accelerator.free_bytes(target, peak_bytes)
        policy = eviction.by_name(settings.eviction_window_s)[settings.eviction]
        return _Parts(
            runner=gpu.runner,
            give_back=gpu.blocks.give_back,
            compact=gpu.blocks.compact,
            adapters=TieredAdapters(
                self._regions,
                self._packing,
                HostTier(settings.host_bytes, policy),
                Uploader(weights.shape, torch.cuda.default_stream(target)),
                clock.now,
            ),
            memory_bytes=accelerator.memory_bytes(settings, free_bytes),
        )

    def run(self, step: Step) -> list[Drawn]:
        """Run one forward pass; what it brought to each row.

        Raises:
            DeviceLost: no other will run either. Any other fault is this step's alone.
        """
        wanted = {row.adapter for row in step.rows if row.adapter is not None}
        loaded = self._parts.adapters.loaded
        try:
            return self._parts.runner.run(step, {adapter: loaded(adapter) for adapter in wanted})
        except Exception:
            accelerator.check(self._target)
            raise

    def give_back(self, blocks: tuple[int, ...]) -> None:
        """Give the memory of blocks that nobody uses back to the system."""
        self._parts.give_back(blocks)

    def compact(self) -> None:
        """Move keys and values, so that what is free lies side by side; no step may be running."""
        num_moved = self._parts.compact()
        log.info("%d KV blocks moved, so that what is free lies side by side", num_moved)

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

    def adapter_bytes(self, file: AdapterFile) -> int:
        """The memory that the adapter's weights will take."""
        return self._packing.num_bytes(file)

    def load_adapter(self, adapter: Adapter, file: AdapterFile, headers: Mapping[str, str]) -> None:
        """Bring the adapter's weights onto the device.

        Raises:
            DeviceMemoryFull: what is free lies in pieces; compact() helps, unless it has already.
            AnoleError: memd gives no region, or the files are no longer what was validated.
        """
        self._parts.adapters.load(adapter, file, headers)

    def drop_adapter(self, adapter: Adapter) -> None:
        """Give the adapter's memory on the device back."""
        self._parts.adapters.drop(adapter)

    def spare(self, num_bytes: int) -> int | None:
        """Let copies in host memory go; how many bytes did. None where there are none to have."""
        return self._parts.adapters.spare(num_bytes)

    def host_adapters(self) -> tuple[AdapterId, ...]:
        """The adapters that have a copy in host memory, on a device with memory of its own."""
        return self._parts.adapters.host_adapters

    def close(self) -> None:
        """Give back all that is leased."""
        self._parts.adapters.close()
        self._regions.close()
