"""Waiting requests in the order in which a policy wants them served."""

from collections.abc import Iterator
from itertools import islice
from operator import itemgetter

from sortedcontainers import SortedList

from anole_scheduler.core.policy import Key
from anole_scheduler.core.request import Progress, RequestState
from anole_shared.ids import RequestId

_Place = tuple[Key, RequestId, Progress]
_PROGRESS = itemgetter(2)


class Line:
    """Sorted by key, then by request id; everything that it does takes O(log n)."""

    def __init__(self) -> None:
        self.head: Progress | None = None
        """Whose turn it is."""
        self._line: SortedList[_Place] = SortedList()
        self._places: dict[RequestId, _Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._places

    def __iter__(self) -> Iterator[Progress]:
        """From the head."""
        return (progress for _, _, progress in self._line)

    def push(self, key: Key, progress: Progress) -> None:
        """Add a request."""
        request_id = progress.request.request_id
        assert request_id not in self._places, f"{request_id} waits already"
        place = (key, request_id, progress)
        self._places[request_id] = place
        self._line.add(place)
        if self.head is None or place < self._places[self.head.request.request_id]:
            self.head = progress

    def remove(self, request_id: RequestId) -> bool:
        """Take a request out, wherever it stands; whether it was the head."""
        place = self._places.pop(request_id)
        if self.head is not place[2]:
            self._line.remove(place)
            return False
        self._line.pop(0)
        self.head = self._line[0][2] if self._places else None
        return True

    def first(self, count: int) -> list[Progress]:
        """At most count requests from the head."""
        return list(map(_PROGRESS, islice(self._line, count)))

    def key(self, request_id: RequestId) -> Key:
        """The place of a request that is in the line."""
        return self._places[request_id][0]

    def check_invariants(self) -> None:
        """Assert that the line is sorted and holds every waiting request once."""
        keys = [(key, request_id) for key, request_id, _ in self._line]
        assert keys == sorted(keys)
        assert len(keys) == len(self._places)
        assert self.head is (self._line[0][2] if keys else None)
        for key, request_id, progress in self._line:
            assert self._places[request_id] == (key, request_id, progress)
            assert progress.request.request_id == request_id
            assert progress.state is RequestState.WAITING
