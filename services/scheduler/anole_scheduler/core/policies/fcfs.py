"""First come, first served."""

from anole_scheduler.core.policy import Key
from anole_scheduler.core.request import Progress


class FirstComeFirstServed:
    """Order of first arrival; a request that does not fit yet lets nobody pass."""

    def key(self, progress: Progress, now: float) -> Key:  # noqa: ARG002
        return progress.first_arrived_s
