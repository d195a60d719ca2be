"""Puts a CPU's parts together: keys and values in one pool, and threads that share steps."""

import logging

from anole_shared.ids import RequestId
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.runtime import compiling
from anole_worker.runtime.cpu_batches import CpuBatches
from anole_worker.runtime.crew import Crew, default_threads
from anole_worker.runtime.grammar import Grammars
from anole_worker.runtime.idle_adapter import IDLE, load_idle
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.weights import ModelWeights
from anole_worker.settings import WorkerSettings

log = logging.getLogger(__name__)


class CpuRunner:
    """The runner, with the pool that its keys and values are in."""

    def __init__(
        self, weights: ModelWeights, settings: WorkerSettings, grammars: Grammars, num_blocks: int
    ) -> None:
        self._weights = weights
        self.cache = KvCache(
            weights.shape,
            num_blocks=num_blocks,
            block_size=settings.block_size,
            dtype=weights.dtype,
        )
        num_threads = settings.step_threads or default_threads(settings.num_threads)
        batches = CpuBatches(weights, self.cache, num_threads)
        self.runner = ModelRunner(weights, batches, grammars, crew=Crew(num_threads))

    def warm_up(self) -> None:
        """Compile the loops that steps run: a while where that was never done, else a moment."""
        row = Row(
            request_id=RequestId("warm-up"),
            adapter=IDLE,
            token_ids=(0,),
            start=0,
            block_table=(0,),
            sampling=Sampling(temperature=0.0),
        )
        if compiling.IS_NEW:
            log.info("compiling the loops that steps run, which takes up to a minute, once")
        idle = load_idle(self._weights.shape, self._weights.embedding.device)
        self.runner.run(Step(rows=(row,)), {IDLE: idle})
        self.cache.give_back(row.block_table)
