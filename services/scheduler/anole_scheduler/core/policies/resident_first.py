"""One line whose head lets others pass for a bounded time while its adapter is loaded."""

from collections import OrderedDict
from dataclasses import dataclass

from anole_scheduler.core.pace import Pace
from anole_scheduler.core.policies.virtual_deadline import Shares
from anole_scheduler.core.policy import Dispatch, Key, Ordering, Outcome
from anole_scheduler.core.queues import Line
from anole_scheduler.core.request import Progress
from anole_scheduler.core.residency import Residency
from anole_scheduler.core.untried import Untried
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId, RequestId, WorkerId

# Short ways to members, see State.
_NO_ROOM = Outcome.NO_ROOM
_LOADING, _RESIDENT = Residency.LOADING, Residency.RESIDENT


class ResidentFirst:
    """Admits what can run at once: a load never holds anybody up but those who need it.

    A request whose adapter no worker with room holds steps aside: its load is asked for, and those
    behind it go on. It steps back, at its old place, when the adapter has come, or after
    overtake_s: then nobody passes it any more, and the worker that gets it loads the adapter. A
    head for which there is no room lets nobody pass. So nobody is passed for longer than overtake_s
    by those whose key is later, and nobody waits for ever.
    """

    def __init__(
        self,
        ordering: Ordering,
        pace: Pace,
        shares: Shares,
        *,
        overtake_s: float,
        overtake_depth: int,
    ) -> None:
        """overtake_depth: requests that may stand aside at once; 0: nobody is passed."""
        self._ordering = ordering
        self._pace = pace
        self._shares = shares
        self._overtake_s = overtake_s
        self._overtake_depth = overtake_depth
        self._line = Line()
        self._aside: dict[RequestId, _Aside] = {}
        self._needing: dict[AdapterId, dict[RequestId, None]] = {}
        """Who of them needs the adapter."""
        self._wanted: OrderedDict[AdapterId, None] = OrderedDict()
        """Adapters that were not asked for yet: enough are on their way already."""
        self._since_s: OrderedDict[RequestId, float] = OrderedDict()
        """When each that waits stepped aside first, the longest ago first."""
        self._urgent: set[RequestId] = set()
        """Those for whom that is overtake_s ago."""
        self._untried = Untried()
        """Where the head was not turned away."""

    def __len__(self) -> int:
        return len(self._line) + len(self._aside)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._line or request_id in self._aside

    def push(self, progress: Progress, now: float) -> None:
        self._put(self._ordering.key(progress, now), progress)

    def _put(self, key: Key, progress: Progress) -> None:
        self._line.push(key, progress)
        if self._line.head is progress:
            self._untried.reset()

    def remove(self, progress: Progress) -> None:
        request_id = progress.request.request_id
        self._urgent.discard(request_id)
        self._since_s.pop(request_id, None)
        if request_id in self._aside:
            self._leave_aside(request_id)
        elif self._line.remove(request_id):
            self._untried.reset()

    def running(self, progress: Progress, worker: Worker, now: float) -> None:  # noqa: ARG002
        capacity = worker.capacity
        self._shares.learn(len(worker.started), capacity.bytes_per_token, capacity.memory_bytes)

    def ended(self, progress: Progress, now: float) -> None:
        self._pace.learn(progress, now)

    def room_changed(self, worker: Worker | None) -> None:
        if worker is None:
            self._untried.reset()
        else:
            self._untried.add(worker)

    def adapter_moved(self, adapter_id: AdapterId) -> None:
        """Whoever stands aside for it looks again."""
        self._untried.reset()
        for request_id in list(self._needing.get(adapter_id, ())):
            self._step_back(request_id)

    def worker_left(self, worker_id: WorkerId) -> None:  # noqa: ARG002
        """Loads may be lost with it: all look again."""
        self._untried.reset()
        for request_id in list(self._aside):
            self._step_back(request_id)

    def admit(self, dispatch: Dispatch, now: float) -> None:
        """Serve the head, or let it step aside, for as long as it can be one of the two."""
        self._hurry(now)
        if self._wanted:
            self._ask(dispatch)
        while self._untried.are_any and (head := self._line.head) is not None:
            self._serve(head, dispatch, now)

    def _hurry(self, now: float) -> None:
        """Nobody passes those any more that stepped aside overtake_s ago."""
        while self._since_s:
            request_id, since_s = next(iter(self._since_s.items()))
            if now < since_s + self._overtake_s:
                return
            del self._since_s[request_id]
            self._urgent.add(request_id)
            if request_id in self._aside:
                self._step_back(request_id)

    def _serve(self, head: Progress, dispatch: Dispatch, now: float) -> None:
        """Let the head start or step aside; else it is the head still, and was tried."""
        adapter_id = head.request.adapter_id
        among = self._untried.take(dispatch.workers)
        if not among or adapter_id is None or self._is_urgent(head):
            dispatch.offer(head, among)
            return
        having = [each for each in among if each.residency(adapter_id) is _RESIDENT]
        if dispatch.offer(head, having) is not _NO_ROOM:
            return
        if dispatch.choose(head, among) is None:
            return
        states = {each.residency(adapter_id) for each in dispatch.workers if not each.is_draining}
        if head.is_prefetched and _LOADING not in states:
            # It was asked for, and has not come, has gone again, or is where there is no room.
            dispatch.offer(head, among)
        elif len(self._aside) < self._overtake_depth:
            self._step_aside(head, adapter_id, now)
            if _LOADING not in states and not dispatch.load(head):
                self._wanted[adapter_id] = None

    def _is_urgent(self, progress: Progress) -> bool:
        """Whether nobody may pass it."""
        return progress.request.request_id in self._urgent or self._overtake_depth == 0

    def _ask(self, dispatch: Dispatch) -> None:
        """Ask for what could not be asked for before, for as long as somebody stands aside."""
        while self._wanted:
            adapter_id = next(iter(self._wanted))
            needing = self._needing.get(adapter_id)
            if needing and not dispatch.load(self._aside[next(iter(needing))].progress):
                return
            del self._wanted[adapter_id]

    def _step_aside(self, progress: Progress, adapter_id: AdapterId, now: float) -> None:
        request_id = progress.request.request_id
        key = self._line.key(request_id)
        self._line.remove(request_id)
        self._untried.reset()
        self._aside[request_id] = _Aside(key, progress)
        self._since_s.setdefault(request_id, now)
        self._needing.setdefault(adapter_id, {})[request_id] = None

    def _step_back(self, request_id: RequestId) -> None:
        aside = self._leave_aside(request_id)
        self._put(aside.key, aside.progress)
        self._untried.reset()

    def _leave_aside(self, request_id: RequestId) -> "_Aside":
        aside = self._aside.pop(request_id)
        adapter_id = aside.progress.request.adapter_id
        assert adapter_id is not None
        needing = self._needing[adapter_id]
        del needing[request_id]
        if not needing:
            del self._needing[adapter_id]
        return aside

    def upcoming(self, count: int) -> list[Progress]:
        return self._line.first(count)

    def check_invariants(self) -> None:
        self._line.check_invariants()
        self._untried.check_invariants()
        needing = {r: a for a, requests in self._needing.items() for r in requests}
        asides = {r: aside.progress.request.adapter_id for r, aside in self._aside.items()}
        assert needing == asides
        assert len(self._aside) <= self._overtake_depth
        assert list(self._since_s.values()) == sorted(self._since_s.values())
        assert self._aside.keys() <= self._since_s.keys()
        assert all(request_id in self._line for request_id in self._urgent)


@dataclass(frozen=True, slots=True)
class _Aside:
    """A request that stands aside, and its place in the line."""

    key: Key
    progress: Progress
