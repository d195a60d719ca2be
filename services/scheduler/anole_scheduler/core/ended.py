"""Requests that have ended, remembered for a while."""

from collections import OrderedDict
from typing import NamedTuple

from anole_scheduler.core.request import Progress
from anole_shared.ids import RequestId


class Ended(NamedTuple):
    """What is kept of a request's last attempt that ended."""

    attempt: int
    first_arrived_s: float | None = None
    """None where a worker ended it that was not asked by this scheduler."""
    was_squashed: bool = False


class EndedRequests:
    """The last attempts that ended: a second delivery of one is not run again.

    A later attempt at such a request takes over its place in the order.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._ended: OrderedDict[RequestId, Ended] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ended)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._ended

    def get(self, request_id: RequestId) -> Ended | None:
        """What is remembered of the request."""
        return self._ended.get(request_id)

    def add(self, progress: Progress) -> None:
        """Remember an attempt; the oldest ones are forgotten beyond the limit."""
        request = progress.request
        ended = Ended(request.attempt, progress.first_arrived_s, progress.was_squashed)
        self._put(request.request_id, ended)

    def add_unknown(self, request_id: RequestId, attempt: int) -> None:
        """Remember an attempt that was not known here when it ended."""
        known = self._ended.get(request_id)
        if known is None or known.attempt < attempt:
            self._put(request_id, Ended(attempt))
        else:
            self._put(request_id, known)

    def _put(self, request_id: RequestId, ended: Ended) -> None:
        if request_id in self._ended:
            self._ended.move_to_end(request_id)
        self._ended[request_id] = ended
        if len(self._ended) > self._max_length:
            self._ended.popitem(last=False)

    def covers(self, request_id: RequestId, attempt: int) -> bool:
        """Whether this attempt, or a later one at the same request, has ended."""
        ended = self._ended.get(request_id)
        return ended is not None and ended.attempt >= attempt
