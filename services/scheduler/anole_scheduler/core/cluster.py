"""The workers that are known, and what was heard of those that are not yet."""

from collections.abc import Sequence

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.worker import Worker
from anole_shared.ids import RequestId, WorkerId


class Cluster:
    """Every worker that may get requests."""

    def __init__(self) -> None:
        self.workers: tuple[Worker, ...] = ()
        """In order of id."""
        self.empty_since_s = float("-inf")
        """When the last worker left; means something only while there is none."""
        self.version = 0
        """Changes with the workers and with what is in their folders."""
        self.num_departures = 0
        """How often an adapter, or a worker with its adapters, has gone."""
        self._by_id: dict[WorkerId, Worker] = {}
        self._refused: dict[WorkerId, float] = {}
        self._folders: dict[WorkerId, tuple[float, Sequence[Adapter]]] = {}

    def get(self, worker_id: WorkerId) -> Worker | None:
        return self._by_id.get(worker_id)

    def objection(self, model: str, capacity: Capacity) -> str | None:
        """Why a worker like that cannot join, if so."""
        sizes = (capacity.max_num_seqs, capacity.block_size, capacity.block_bytes)
        if min(sizes) < 1 or capacity.num_blocks < 1:
            return f"it can hold nothing ({capacity}): give it more ANOLE_WORKER_MEMORY_BYTES"
        if not self.workers or self.workers[0].model == model:
            return None
        return (
            f"it serves the base model {model!r}, the others serve {self.workers[0].model!r}: "
            "start it with the same ANOLE_MODEL, or with a broker and scheduler of its own"
        )

    def refuse(self, worker_id: WorkerId, now: float) -> bool:
        """Note that a worker was turned away; whether that is new."""
        is_new = worker_id not in self._refused
        self._refused[worker_id] = now
        return is_new

    def join(self, worker: Worker) -> Sequence[Adapter] | None:
        """Add a worker; the folder it has told of before, if it has."""
        self._by_id[worker.worker_id] = worker
        self._refused.pop(worker.worker_id, None)
        self._sort()
        heard = self._folders.pop(worker.worker_id, None)
        return heard[1] if heard else None

    def leave(self, worker: Worker, now: float) -> None:
        """Remove a worker and all that was believed of it."""
        del self._by_id[worker.worker_id]
        self.num_departures += 1
        self._sort()
        if not self.workers:
            self.empty_since_s = now

    def _sort(self) -> None:
        self.version += 1
        self.workers = tuple(worker for _, worker in sorted(self._by_id.items()))

    def keep_folder(self, worker_id: WorkerId, folder: Sequence[Adapter], now: float) -> None:
        """Remember the folder of a worker that has not joined yet."""
        self._folders[worker_id] = (now, folder)

    def runner_of(self, request_id: RequestId) -> Worker | None:
        """The worker that reports the request although it was not given it."""
        return next((worker for worker in self.workers if request_id in worker.foreign), None)

    def silent(self, now: float, timeout_s: float) -> list[Worker]:
        """The workers that have not reported in that time; strangers like that are forgotten."""
        self._refused = {w: t for w, t in self._refused.items() if now - t <= timeout_s}
        self._folders = {w: f for w, f in self._folders.items() if now - f[0] <= timeout_s}
        return [worker for worker in self.workers if now - worker.seen_s > timeout_s]

    def excuse_silence(self, now: float) -> None:
        """Count every worker's silence from now on: it was the scheduler that was away."""
        for worker in self.workers:
            worker.seen_s = now

    def check_invariants(self) -> None:
        """Assert that the workers are sorted, alike, and sound each."""
        assert [worker.worker_id for worker in self.workers] == sorted(self._by_id)
        assert len({worker.model for worker in self.workers}) <= 1
        assert not self._refused.keys() & self._by_id.keys()
        for worker in self.workers:
            worker.check_invariants()
