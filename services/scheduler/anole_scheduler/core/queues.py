"""Waiting requests in the order in which a policy wants them served."""

from bisect import bisect_left, insort

from anole_scheduler.core.policy import Key, Ordering
from anole_scheduler.core.request import Progress, RequestState
from anole_shared.ids import RequestId


class WaitingQueue:
    """A sorted list: finding a place takes O(log n), and moving the rest is one block move.

    First come, first served always appends, which moves nothing.
    """

    def __init__(self, ordering: Ordering) -> None:
        self._ordering = ordering
        self._line: list[tuple[Key, RequestId]] = []
        self._waiting: dict[RequestId, tuple[Key, Progress]] = {}

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._waiting

    def push(self, progress: Progress) -> None:
        """Let a request wait for its turn."""
        request_id = progress.request.request_id
        assert request_id not in self._waiting, f"{request_id} waits already"
        key = self._ordering.key(progress)
        self._waiting[request_id] = (key, progress)
        insort(self._line, (key, request_id))

    def remove(self, request_id: RequestId) -> None:
        """Take a request out, wherever it stands."""
        key, _ = self._waiting.pop(request_id)
        del self._line[bisect_left(self._line, (key, request_id))]

    def head(self) -> Progress | None:
        """Whose turn it is."""
        return self._waiting[self._line[0][1]][1] if self._line else None

    def first(self, count: int) -> list[Progress]:
        """At most count requests from the head."""
        return [self._waiting[request_id][1] for _, request_id in self._line[:count]]

    def check_invariants(self) -> None:
        """Assert that the line is sorted and holds every waiting request once."""
        assert self._line == sorted(self._line)
        assert len(self._line) == len(self._waiting)
        for key, request_id in self._line:
            assert self._waiting[request_id][0] == key
        for request_id, (_, progress) in self._waiting.items():
            assert progress.request.request_id == request_id
            assert progress.state is RequestState.WAITING
