"""How short of memory the host, or this process's control group, is: PSI and cgroup v2.

Documentation/accounting/psi.rst and Documentation/admin-guide/cgroup-v2.rst of Linux.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from anole_memd.core.controller import Pressure

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")

_STALL = re.compile(r"(some|full) avg10=([0-9.]+) ")
_LIMIT_EVENTS = ("high", "max", "oom")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls:
    """The share of the last 10 s in which tasks waited for memory, in percent."""

    some: float
    """At least one of them."""
    full: float
    """All of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """From which share on the host counts as short of memory, in percent."""

    some: float
    full: float


class PressureGauge:
    """Reads both, where this kernel has them. Small files: it may be read on the event loop."""

    def __init__(
        self, thresholds: Thresholds, proc: Path = PROC, cgroup: Path | None = None
    ) -> None:
        """cgroup: this process's own directory; None: found by /proc/self/cgroup."""
        self._thresholds = thresholds
        self._psi = proc / "pressure" / "memory"
        self._cgroup = own_cgroup(proc) if cgroup is None else cgroup
        self._num_events = self._limit_events()

    @property
    def is_blind(self) -> bool:
        """Whether this kernel tells nothing (CONFIG_PSI, no cgroup v2)."""
        return stalls(self._psi) is None and self._limit_events() is None

    def read(self) -> Pressure:
        """How it is now. A limit that was hit since the last call counts as FULL."""
        events = self._limit_events()
        was_hit = None not in (events, self._num_events) and events != self._num_events
        self._num_events = events
        if was_hit:
            return Pressure.FULL
        return max((self._of(stalls(path)) for path in self._stall_files()), key=_severity)

    def _stall_files(self) -> list[Path]:
        own = [] if self._cgroup is None else [self._cgroup / "memory.pressure"]
        return [self._psi, *own]

    def _of(self, seen: Stalls | None) -> Pressure:
        if seen is None:
            return Pressure.NONE
        if seen.full >= self._thresholds.full:
            return Pressure.FULL
        return Pressure.SOME if seen.some >= self._thresholds.some else Pressure.NONE

    def _limit_events(self) -> int | None:
        """How often this control group was at its limit."""
        if self._cgroup is None:
            return None
        try:
            lines = (self._cgroup / "memory.events").read_text().splitlines()
            counts = {name: int(count) for name, count in (line.split() for line in lines)}
        except (OSError, ValueError):
            return None
        return sum(counts.get(name, 0) for name in _LIMIT_EVENTS)


def stalls(path: Path) -> Stalls | None:
    """A pressure file's averages over 10 s; None where the kernel has no such file."""
    try:
        found = dict(_STALL.findall(path.read_text()))
        return Stalls(some=float(found["some"]), full=float(found["full"]))
    except (OSError, KeyError, ValueError):
        return None


def own_cgroup(proc: Path = PROC, root: Path = CGROUP) -> Path | None:
    """This process's cgroup v2 directory; None where there is none, or it is the host's root.

    A container's own is "/" to it, too, but has the files that the host's root lacks.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    folder = root / path.strip("/")
    return folder if (folder / "memory.events").exists() else None


def _severity(pressure: Pressure) -> int:
    return list(Pressure).index(pressure)
