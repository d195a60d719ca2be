"""The best score wins."""

from collections.abc import Sequence

from anole_scheduler.core.policy import Scores
from anole_scheduler.core.worker import Worker


class Best:
    """Of equally good workers the one with the smallest id, so that a run can be repeated."""

    def pick(self, candidates: Sequence[tuple[Scores, Worker]]) -> Worker:
        return max(candidates, key=lambda candidate: candidate[0])[1]
