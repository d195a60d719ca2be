"""HolderWatch: hears from the kernel that a process has ended, also one that is not its child."""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from anole_memd.backends import processes
from anole_memd.core.lease import Holder

log = logging.getLogger(__name__)


class HolderWatch:
    """One pidfd a holder (pidfd_open(2)); it becomes readable when the process has ended.

    Its memory is gone by then: the kernel lets go of mappings and files before it tells.
    """

    def __init__(self, on_ended: Callable[[Holder], None], proc: Path = processes.PROC) -> None:
        """on_ended: called once for each holder, on the event loop."""
        self._on_ended = on_ended
        self._proc = proc
        self._pidfds: dict[Holder, int] = {}

    def add(self, holder: Holder) -> bool:
        """Watch a holder; False where it has ended already, or cannot be watched."""
        if holder in self._pidfds:
            return True
        if holder.pid == 0:
            return False
        try:
            pidfd = os.pidfd_open(holder.pid)
        except ProcessLookupError:
            return False
        except OSError as fault:  # no descriptor is left: it is looked for in /proc instead
            log.warning("the end of process %d will be heard of late: %s", holder.pid, fault)
            return False
        if processes.start_ticks(holder.pid, self._proc) != holder.started:
            os.close(pidfd)
            return False
        asyncio.get_running_loop().add_reader(pidfd, self._ended, holder)
        self._pidfds[holder] = pidfd
        return True

    def _ended(self, holder: Holder) -> None:
        self.remove(holder)
        log.debug("process %d has ended", holder.pid)
        self._on_ended(holder)

    def remove(self, holder: Holder) -> None:
        """Watch it no more."""
        pidfd = self._pidfds.pop(holder, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Watch nobody any more."""
        for holder in list(self._pidfds):
            self.remove(holder)
