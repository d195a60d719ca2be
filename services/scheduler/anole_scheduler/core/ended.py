"""Requests that have ended, remembered for a while."""

from collections import OrderedDict

from anole_shared.ids import RequestId


class EndedRequests:
    """The last attempts that ended: a second delivery of one is not run again."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._attempts: OrderedDict[RequestId, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._attempts)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._attempts

    def add(self, request_id: RequestId, attempt: int) -> None:
        """Remember an attempt; the oldest ones are forgotten beyond the limit."""
        self._attempts[request_id] = max(attempt, self._attempts.get(request_id, attempt))
        self._attempts.move_to_end(request_id)
        if len(self._attempts) > self._max_length:
            self._attempts.popitem(last=False)

    def covers(self, request_id: RequestId, attempt: int) -> bool:
        """Whether this attempt, or a later one at the same request, has ended."""
        return self._attempts.get(request_id, -1) >= attempt
