"""First come, first served."""

from anole_scheduler.core.policy import Key
from anole_scheduler.core.request import Progress


class FirstComeFirstServed:
    """Order of arrival; a request that does not fit yet lets nobody pass."""

    def key(self, progress: Progress) -> Key:
        return (progress.arrived_s,)
