"""One line a size class, with quotas: Chameleon's scheduler."""

from collections.abc import Sequence
from itertools import chain, islice, zip_longest

from anole_scheduler.core.accounts import Accounts
from anole_scheduler.core.classes import SizeClasses
from anole_scheduler.core.knobs import PolicyKnobs
from anole_scheduler.core.pace import Pace
from anole_scheduler.core.policies.bypass import Bypass
from anole_scheduler.core.policy import Dispatch, Outcome
from anole_scheduler.core.queues import Line
from anole_scheduler.core.request import Progress
from anole_scheduler.core.size import measure_of
from anole_scheduler.core.untried import Untried
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId, RequestId, WorkerId

_NEVER = float("inf")
# Short ways to members, see State.
_STARTED, _NO_ROOM = Outcome.STARTED, Outcome.NO_ROOM


class _Queue:
    """The line of one class."""

    def __init__(self) -> None:
        self.line = Line()
        self.untried = Untried()
        """Where the head was not turned away."""
        self.tried: Sequence[Worker] = ()
        """Where the present head was turned away just now."""
        self.is_passed = False
        """Whether that was for want of room for its adapter, so that others may pass it."""
        self.blocked_since_s = _NEVER
        """When its present head was turned away first."""

    def renew(self) -> None:
        """Its head is another, or the first."""
        self.untried.reset()
        self.is_passed = False
        self.blocked_since_s = _NEVER


class ClassQueues:
    """Admission as in Chameleon (MICRO'25), sections 4.3.1 to 4.3.5, over several workers.

    Phase one: each class, from the smallest, in order of arrival, as far as its quotas go. Phase
    two, in the same order: with what classes without waiting requests have left. A head that does
    not fit blocks its own class; only for want of room for its adapter others may pass it.

    Of our own: each worker has its quotas, and the worker is chosen by placement among those where
    the class has enough left. Where a worker's seats are fewer than its tokens would serve, small
    requests could keep a large one waiting for ever: a head that has found no room for patience_s
    gets a worker reserved, and quotas do not count there.
    """

    def __init__(self, classes: SizeClasses, accounts: Accounts, knobs: PolicyKnobs) -> None:
        self._classes = classes
        self._accounts = accounts
        self._knobs = knobs
        self._pace = Pace()
        self._bypass = Bypass(self._pace, knobs.squash_share)
        self._queues = [_Queue()]
        self._class_of: dict[RequestId, int] = {}
        self._allotted_for: object = None
        """The workers that quotas were made for last."""
        self._impatient_s = _NEVER
        """When the next head has waited for too long."""

    def __len__(self) -> int:
        return len(self._class_of)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._class_of

    def push(self, progress: Progress, now: float) -> None:
        measure = measure_of(progress)
        self._classes.observe(measure, now)
        self._enqueue(progress, self._classes.class_of(measure))

    def _enqueue(self, progress: Progress, size_class: int) -> None:
        queue = self._queues[size_class]
        queue.line.push(progress.first_arrived_s, progress)
        self._class_of[progress.request.request_id] = size_class
        if queue.line.head is progress:
            queue.renew()
        elif queue.is_passed and len(queue.line) <= self._knobs.bypass_depth + 1:
            queue.untried.reset()

    def remove(self, progress: Progress) -> None:
        request_id = progress.request.request_id
        queue = self._queues[self._class_of.pop(request_id)]
        self._bypass.forget(progress)
        if queue.line.remove(request_id):
            queue.renew()

    def running(self, progress: Progress, worker: Worker, now: float) -> None:  # noqa: ARG002
        self._accounts.take(progress, worker)
        self._bypass.running(progress, worker)

    def ended(self, progress: Progress, now: float) -> None:
        self._accounts.give_back(progress, now)
        self._bypass.ended(progress)
        self._pace.learn(progress, now)

    def room_changed(self, worker: Worker | None) -> None:
        if worker is None:
            for queue in self._queues:
                queue.untried.reset()
            return
        heads = [queue.line.head for queue in self._queues]
        may_borrow = self._knobs.lends and None in heads
        is_special = may_borrow or worker.reserved_for is not None
        for size_class, head in enumerate(heads):
            if is_special or head is None or self._accounts.allows(head, size_class, worker):
                self._queues[size_class].untried.add(worker)

    def adapter_moved(self, adapter_id: AdapterId) -> None:
        pass

    def worker_left(self, worker_id: WorkerId) -> None:
        self._accounts.forget(worker_id)
        self.room_changed(None)

    def admit(self, dispatch: Dispatch, now: float) -> None:
        """Form what the paper calls a batch: both phases."""
        if self._classes.is_due(now):
            self._refresh(now)
        if self._allotted_for is not dispatch.workers:
            self._accounts.allot(dispatch.workers)
            self._allotted_for = dispatch.workers
            self.room_changed(None)
        if now >= self._impatient_s:
            self._reserve(dispatch, now)
        tried = [
            size_class
            for size_class, queue in enumerate(self._queues)
            if queue.untried.are_any and queue.line.head and self._serve(size_class, dispatch, now)
        ]
        if tried and self._knobs.lends and len(self._queues) > 1:
            self._lend(tried, dispatch)

    def _refresh(self, now: float) -> None:
        """Classes anew; who waits is sorted in again, in order of arrival."""
        if not self._classes.refresh(now):
            return
        before, self._queues = self._queues, [_Queue() for _ in range(self._classes.count)]
        for progress in (progress for queue in before for progress in queue.line):
            self._enqueue(progress, self._classes.class_of(measure_of(progress)))
        since_s = {id(queue.line.head): queue.blocked_since_s for queue in before}
        for queue in self._queues:
            queue.blocked_since_s = since_s.get(id(queue.line.head), _NEVER)
        self._accounts.measure_demand(now)
        self._allotted_for = None

    def _reserve(self, dispatch: Dispatch, now: float) -> None:
        """Keep a worker free for each head that has waited for too long."""
        self._impatient_s = _NEVER
        for queue in sorted(self._queues, key=lambda queue: queue.blocked_since_s):
            due_s = queue.blocked_since_s + self._knobs.patience_s
            head = queue.line.head
            if head is None or due_s == _NEVER:
                continue
            is_reserved = head.reserved_at is not None
            if now < due_s:
                self._impatient_s = min(self._impatient_s, due_s)
            elif not is_reserved and dispatch.reserve(head):
                queue.untried.reset()
            elif not is_reserved:
                self._impatient_s = now  # all workers are reserved: when one is not any more

    def _serve(self, size_class: int, dispatch: Dispatch, now: float) -> bool:
        """Phase one for one class; whether its head was turned away."""
        queue = self._queues[size_class]
        while queue.untried.are_any and (head := queue.line.head) is not None:
            queue.tried = queue.untried.take(dispatch.workers)
            allowed = self._allowing(head, size_class, queue.tried)
            if dispatch.offer(head, allowed) is not _NO_ROOM:
                continue
            if queue.blocked_since_s == _NEVER:
                queue.blocked_since_s = now
                self._impatient_s = min(self._impatient_s, now + self._knobs.patience_s)
            if self._knobs.bypasses:
                self._let_pass(head, size_class, allowed, dispatch, now)
            return True
        return False

    def _allowing(
        self, progress: Progress, size_class: int, workers: Sequence[Worker]
    ) -> list[Worker]:
        """Those where the class has enough left for it, or that are reserved for it."""
        request_id, allows = progress.request.request_id, self._accounts.allows
        return [
            worker
            for worker in workers
            if worker.reserved_for == request_id or allows(progress, size_class, worker)
        ]

    def _let_pass(
        self,
        head: Progress,
        size_class: int,
        allowed: Sequence[Worker],
        dispatch: Dispatch,
        now: float,
    ) -> None:
        """Let others of the class run where only head's adapter has no room; undo it if wrong."""
        if head.adapter is None or head.reserved_at is not None:
            return
        victim = self._bypass.victim(head, dispatch.workers)
        if victim is not None:
            other, worker = victim
            dispatch.reserve(head, worker)
            dispatch.squash(other, f"{head.request.request_id}, which it passed, needs its room")
            return
        short = [worker for worker in allowed if worker.lacks_only_adapter_room(head)]
        if not short:
            return
        queue = self._queues[size_class]
        queue.is_passed = True
        for other in queue.line.first(self._knobs.bypass_depth + 1)[1:]:
            passing = [
                worker
                for worker in self._allowing(other, size_class, short)
                if worker.can_start(other) and self._bypass.waits_longer(head, other, worker, now)
            ]
            if passing and dispatch.offer(other, passing) is _STARTED:
                self._bypass.note(head, other)

    def _lend(self, tried: list[int], dispatch: Dispatch) -> None:
        """Phase two: the borrower is charged and may go above its share, within the pool."""
        empty = [number for number, queue in enumerate(self._queues) if not queue.line]
        if not empty or len(empty) == len(self._queues):
            return
        spare: dict[WorkerId, int] = {}
        for size_class in tried:
            queue = self._queues[size_class]
            among = queue.tried
            while (head := queue.line.head) is not None:
                lending = self._lending(head, among, empty, spare)
                if not lending or dispatch.offer(head, lending) is _NO_ROOM:
                    break
                among = dispatch.workers
                if head.worker_id is not None:
                    spare[head.worker_id] -= self._accounts.charged(head)

    def _lending(
        self,
        progress: Progress,
        workers: Sequence[Worker],
        empty: Sequence[int],
        spare: dict[WorkerId, int],
    ) -> list[Worker]:
        """Workers where the classes without waiting requests have enough left between them."""
        lending = []
        for worker in workers:
            quotas = self._accounts.quotas(worker)
            if worker.worker_id not in spare:
                spare[worker.worker_id] = sum([quotas.available(number) for number in empty])
            most = min(spare[worker.worker_id], quotas.unused)
            if most > 0 and self._accounts.need(progress, worker) <= most:
                lending.append(worker)
        return lending

    def upcoming(self, count: int) -> list[Progress]:
        """The heads of all classes, the smallest class first, then those behind them."""
        if len(self._queues) == 1:
            return self._queues[0].line.first(count)
        rows = zip_longest(*[queue.line for queue in self._queues])
        return list(islice(filter(None, chain.from_iterable(rows)), count))

    def check_invariants(self) -> None:
        self._accounts.check_invariants()
        assert len(self._queues) == self._classes.count
        assert sum(len(queue.line) for queue in self._queues) == len(self._class_of)
        for number, queue in enumerate(self._queues):
            queue.line.check_invariants()
            queue.untried.check_invariants()
            assert all(self._class_of[p.request.request_id] == number for p in queue.line)
