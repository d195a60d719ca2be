"""Carries out what an admission policy wants done with a waiting request."""

from collections.abc import Sequence

from anole_scheduler.core.cluster import Cluster
from anole_scheduler.core.ledger import Ledger
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.placement import Placement
from anole_scheduler.core.policy import Outcome
from anole_scheduler.core.refusal import refusal_of
from anole_scheduler.core.registry import Registry
from anole_scheduler.core.request import Progress
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId

# Short ways to members, see State.
_STARTED, _NO_ROOM = Outcome.STARTED, Outcome.NO_ROOM
_LOADING, _RESIDENT = Residency.LOADING, Residency.RESIDENT


class Dispatcher:
    """Finds a worker, and keeps ledger and mirror in step."""

    def __init__(
        self,
        limits: Limits,
        placement: Placement,
        cluster: Cluster,
        registry: Registry,
        ledger: Ledger,
    ) -> None:
        self._limits = limits
        self._placement = placement
        self._cluster = cluster
        self._registry = registry
        self._ledger = ledger

    @property
    def workers(self) -> Sequence[Worker]:
        return self._cluster.workers

    def choose(self, progress: Progress, among: Sequence[Worker] | None = None) -> Worker | None:
        """The best worker that has room."""
        workers = self._cluster.workers if among is None else among
        return self._placement.choose(progress, workers)

    def offer(self, progress: Progress, among: Sequence[Worker] | None = None) -> Outcome:
        """Start the request where it fits best; refuse it where it never will."""
        worker = self.choose(progress, among)
        if worker is not None:
            self._ledger.start(progress, worker)
            return _STARTED
        version = self._cluster.version
        if progress.possible_since == version:
            return _NO_ROOM
        refusal = refusal_of(progress.request, self._cluster.workers, self._registry)
        if refusal is None:
            progress.possible_since = version
            return _NO_ROOM
        self._ledger.fail(progress, refusal)
        return Outcome.REFUSED

    def load(self, progress: Progress) -> bool:
        """Have the request's adapter loaded where the request will fit best."""
        able = [worker for worker in self._cluster.workers if self._loads_few(worker)]
        worker = self.choose(progress, able)
        if worker is not None:
            self._ledger.prefetch(progress, worker)
        return worker is not None

    def _loads_few(self, worker: Worker) -> bool:
        return worker.num_loading < self._limits.max_loads

    def squash(self, progress: Progress, reason: str) -> None:
        """Stop a running request; it fails as SQUASHED when its worker has let go of it."""
        self._ledger.squash(progress, reason)

    def reserve(self, progress: Progress, worker: Worker | None = None) -> bool:
        """Keep a worker free for the request; by itself the least loaded that can ever run it."""
        able = (
            each
            for each in ([worker] if worker else self._cluster.workers)
            if each.reserved_for is None
            and not each.is_draining
            and each.can_ever_run(progress.request, progress.adapter)
        )
        worker = min(able, key=lambda worker: worker.load, default=None)
        if worker is None:
            return False
        worker.reserved_for = progress.request.request_id
        progress.reserved_at = worker.worker_id
        return True

    def look_ahead(self, upcoming: Sequence[Progress]) -> None:
        """Have adapters loaded early that the next requests need and no worker has."""
        version = self._cluster.num_departures
        for progress in upcoming:
            if progress.seen_by == version or progress.is_prefetched:
                continue
            adapter_id = progress.request.adapter_id
            if adapter_id is None or self._is_somewhere(adapter_id):
                progress.seen_by = version
                continue
            able = [
                worker
                for worker in self._cluster.workers
                if not worker.is_draining
                and worker.can_ever_run(progress.request, progress.adapter)
            ]
            worker = min(able, key=lambda worker: worker.load, default=None)
            if worker is not None and self._loads_few(worker):
                self._ledger.prefetch(progress, worker)

    def _is_somewhere(self, adapter_id: AdapterId) -> bool:
        """Whether a worker that stays has it on its device, or will have."""
        for worker in self._cluster.workers:
            residency = worker.residency(adapter_id)
            is_near = residency is _RESIDENT or residency is _LOADING
            if is_near and not worker.is_draining:
                return True
        return False
