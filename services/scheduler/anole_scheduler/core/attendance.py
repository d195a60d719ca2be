"""What is heard of workers, and what follows for the requests they have."""

from collections.abc import Iterable
from dataclasses import replace

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.cluster import Cluster
from anole_scheduler.core.commands import (
    AbortSequence,
    ForgetAdapter,
    ForgetWorker,
    RecordAdapter,
    RecordWorker,
    RefuseWorker,
)
from anole_scheduler.core.events import (
    AdapterMoved,
    AdaptersFound,
    Recalled,
    WorkerEvent,
    WorkerGone,
    WorkerSeen,
)
from anole_scheduler.core.ledger import Ledger
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.reconcile import compare
from anole_scheduler.core.registry import Registry
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId


class Attendance:
    """Keeps cluster and registry in step with what workers say, and with their silence."""

    def __init__(
        self, limits: Limits, cluster: Cluster, registry: Registry, ledger: Ledger
    ) -> None:
        self._limits = limits
        self._cluster = cluster
        self._registry = registry
        self._ledger = ledger
        self._ticked_s: float | None = None

    def handle(self, event: WorkerEvent, now: float) -> None:
        """Take in one event."""
        worker = self._cluster.get(event.worker_id)
        match event:
            case WorkerSeen():
                self._on_seen(event, worker, now)
            case AdaptersFound() if worker is None:
                self._cluster.keep_folder(event.worker_id, event.adapters, now)
            case AdaptersFound() if worker is not None:
                self._learn(worker, event.adapters)
            case AdapterMoved() if worker is not None:
                has_gone = event.residency is Residency.ABSENT or event.residency is Residency.HOST
                self._cluster.num_departures += has_gone
                worker.observe(event.adapter_id, event.residency, now)
            case WorkerGone() if worker is not None:
                self._lose(worker, event.reason, now)
            case _:
                pass  # of a worker that is gone, or was never let in

    def recall(self, recalled: Recalled, now: float) -> None:
        """Know the workers that an earlier scheduler knew, for as long as a silent one is known.

        So requests find a worker, and one that has the adapter, before the first report. Loads are
        not believed in: they may have been expected only, and nobody would tell of their end.
        """
        self._registry.recall(recalled.adapters)
        for seen in recalled.workers:
            if self._cluster.get(seen.worker_id) is not None:
                continue
            worker = self._join(seen, now)
            if worker is not None:
                self.note_draining(worker, is_draining=seen.is_draining)
                known = _reported(replace(seen, loading=()))
                worker.report_adapters(known, now, self._limits.load_timeout_s)

    def note_draining(self, worker: Worker, *, is_draining: bool) -> None:
        """The worker will take nothing more, or takes requests (again)."""
        if worker.is_draining == is_draining:
            return
        worker.is_draining = is_draining
        self._cluster.version += 1
        self._cluster.num_departures += 1
        self._unreserve(worker)

    def drop_silent(self, now: float) -> None:
        """Give up the workers that have not reported for too long.

        Where this was not called for long it was the scheduler that was away (stopped, or cut off
        from the broker): everybody gets the whole time again.
        """
        timeout_s = self._limits.worker_timeout_s
        if self._ticked_s is not None and now - self._ticked_s > timeout_s / 2:
            self._cluster.excuse_silence(now)
        self._ticked_s = now
        for worker in self._cluster.silent(now, timeout_s):
            self._lose(worker, f"no report for {timeout_s:.0f} s", now)

    def _on_seen(self, event: WorkerSeen, worker: Worker | None, now: float) -> None:
        if worker and (worker.model, worker.capacity) != (event.model, event.capacity):
            self._lose(worker, "it was started again with other settings", now)
            worker = None
        is_new = worker is None
        if worker is None:
            worker = self._join(event, now)
        if worker is None:
            return
        worker.seen_s = now
        self.note_draining(worker, is_draining=event.is_draining)
        if worker.report_adapters(_reported(event), now, self._limits.load_timeout_s):
            self._cluster.num_departures += 1
        self._reconcile(event, worker, now)
        self._ledger.commands.append(
            RecordWorker(
                worker_id=worker.worker_id,
                model=worker.model,
                capacity=worker.capacity,
                num_running=len(event.running),
                num_free_blocks=event.num_free_blocks,
                resident=worker.adapters(Residency.RESIDENT),
                loading=worker.adapters(Residency.LOADING),
                host=worker.adapters(Residency.HOST),
                is_draining=worker.is_draining,
                is_new=is_new,
            )
        )

    def _join(self, event: WorkerSeen, now: float) -> Worker | None:
        objection = self._cluster.objection(event.model, event.capacity)
        if objection is not None:
            if self._cluster.refuse(event.worker_id, now):
                refused = RefuseWorker(worker_id=event.worker_id, reason=objection)
                self._ledger.commands.append(refused)
            return None
        worker = Worker(
            event.worker_id,
            model=event.model,
            capacity=event.capacity,
            admit_ahead=self._limits.admit_ahead,
            output_share=self._limits.output_share,
            now=now,
        )
        folder = self._cluster.join(worker)
        if folder is not None:
            self._learn(worker, folder)
        return worker

    def _reconcile(self, event: WorkerSeen, worker: Worker, now: float) -> None:
        ledger = self._ledger
        findings = compare(
            worker,
            event.running,
            requests=ledger.requests,
            ended=ledger.ended,
            limits=self._limits,
            now=now,
        )
        for progress in findings.found:
            ledger.adopt(progress, worker)
        for progress in findings.lost:
            ledger.lose(progress, f"worker {worker.worker_id} does not have it")
        worker.report_foreign(findings.foreign, event.num_free_blocks, now)
        ledger.commands += [
            AbortSequence(worker_id=worker.worker_id, request_id=request_id, reason=reason)
            for request_id, reason in findings.strays
        ]

    def _learn(self, worker: Worker, folder: Iterable[Adapter]) -> None:
        self._cluster.version += 1
        found = {adapter.adapter_id: adapter for adapter in folder}
        worker.folder = found
        learnt = self._registry.learn(found.values(), self._cluster.workers)
        if worker.worker_id == min(known.worker_id for known in self._cluster.workers):
            # One worker's folder is recorded again whenever it tells of it, so that a store that
            # has lost its data gets it back; one worker's, to keep the writes few.
            known = (self._registry.get(adapter_id) for adapter_id in found)
            learnt = [adapter for adapter in known if adapter is not None]
        self._ledger.commands += [RecordAdapter(adapter=adapter) for adapter in learnt]
        missing = self._registry.forget_missing(self._cluster.workers)
        self._ledger.commands += [
            ForgetAdapter(adapter_id=adapter_id, reason="no worker has it any more")
            for adapter_id in missing
        ]

    def _lose(self, worker: Worker, reason: str, now: float) -> None:
        self._cluster.leave(worker, now)
        self._unreserve(worker)
        self._ledger.commands.append(ForgetWorker(worker_id=worker.worker_id, reason=reason))
        for request_id in worker.admitted():
            progress = self._ledger.requests[request_id]
            self._ledger.lose(progress, f"worker {worker.worker_id} was lost: {reason}")
        self._ledger.queue.worker_left(worker.worker_id)

    def _unreserve(self, worker: Worker) -> None:
        if worker.reserved_for is not None:
            self._ledger.requests[worker.reserved_for].reserved_at = None
            worker.reserved_for = None


def _reported(event: WorkerSeen) -> dict[AdapterId, Residency]:
    """Where the worker has each adapter; the nearest place, where it names several."""
    return {
        **dict.fromkeys(event.host, Residency.HOST),
        **dict.fromkeys(event.loading, Residency.LOADING),
        **dict.fromkeys(event.resident, Residency.RESIDENT),
    }
