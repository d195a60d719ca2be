"""Controller: how much memory there should be now, and when holders must give some back.

Pure: it is told what is seen and what time it is. It grows at once, ahead of demand; it shrinks to
the most that was wanted over a hold time, so that a lull does not cost a reload; and it gives way,
a step at a time, while the host is short of memory, then does not grow for a hold time.
"""

from dataclasses import dataclass
from enum import StrEnum

from anole_memd.core.peak import SlidingMax
from anole_shared.units import round_up


class Pressure(StrEnum):
    """How short of memory the host is."""

    NONE = "none"
    SOME = "some"
    """Tasks wait for memory now and then: give way slowly."""
    FULL = "full"
    """The limit is hit, or all tasks wait: give way at once, to what is used and below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What is seen at one moment; all in bytes."""

    used_bytes: int
    """What holders say that they use of their leases; all of it where they say nothing."""
    wanted_bytes: int
    """What they could use besides."""
    leased_bytes: int
    pressure: Pressure


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerLimits:
    """The controller's fixed sizes and times."""

    floor_bytes: int
    ceiling_bytes: int
    block_bytes: int
    """Sizes are multiples of this, but for the floor and the ceiling themselves."""
    headroom: float
    """How far ahead of demand it grows, as a part of demand."""
    hold_s: float
    """For how long less must have been wanted before it shrinks; and for how long it does not grow
    after it has given way."""
    step: float
    """The part of what is there that it gives up at each step under pressure."""
    deadline_s: float
    """How long holders have to give memory back. No second revoke comes before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Have so many bytes from now on."""

    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """Ask holders for so many bytes back."""

    num_bytes: int
    deadline_s: float


Command = Resize | Revoke


class Controller:
    """tick() it a few times a second."""

    def __init__(self, limits: ControllerLimits, requested_bytes: int) -> None:
        """requested_bytes: where an earlier memd left off."""
        self.limits = limits
        self._requested = self._clamped(requested_bytes)
        self._peak = SlidingMax(limits.hold_s)
        self._last_leased = 0
        self._began_s: float | None = None
        self._grow_from_s = 0.0
        self._revoke_from_s = 0.0
        self._give_way_from_s = 0.0

    @property
    def requested_bytes(self) -> int:
        """What there should be now: never below the floor or above the ceiling."""
        return self._requested

    def tick(self, sample: Sample, now: float) -> list[Command]:
        """What is to be done now; most often nothing."""
        if self._began_s is None:
            self._began_s = now
        wanted = self._wanted(sample)
        self._peak.add(now, wanted)
        self._last_leased = sample.leased_bytes
        before = self._requested
        if sample.pressure is not Pressure.NONE:
            self._give_way(sample, now)
        elif wanted > before:
            if now >= self._grow_from_s:
                self._requested = wanted
        elif now - self._began_s >= self.limits.hold_s:
            self._requested = min(before, self._peak.value)
        commands: list[Command] = []
        if self._requested != before:
            commands.append(Resize(num_bytes=self._requested))
        excess = sample.leased_bytes - self._requested
        # What demand has just brought is not asked back: the next tick grows for it.
        is_due = sample.pressure is not Pressure.NONE or wanted <= self._requested
        if excess > 0 and now >= self._revoke_from_s and is_due:
            self._revoke_from_s = now + self.limits.deadline_s
            commands.append(Revoke(num_bytes=excess, deadline_s=self.limits.deadline_s))
        return commands

    def _wanted(self, sample: Sample) -> int:
        """What is used, or what was leased since the last look where that is past the request."""
        demand = sample.used_bytes + sample.wanted_bytes
        growth = sample.leased_bytes - self._last_leased
        if growth > 0 and sample.leased_bytes > self._requested:
            demand = max(demand, min(sample.leased_bytes, self._requested + growth))
        return self._clamped(demand + int(demand * self.limits.headroom))

    def _give_way(self, sample: Sample, now: float) -> None:
        """A step for each deadline: what was asked back needs that time to come."""
        self._grow_from_s = now + self.limits.hold_s
        if now < self._give_way_from_s:
            return
        self._give_way_from_s = now + self.limits.deadline_s
        base = min(self._requested, max(sample.leased_bytes, self.limits.floor_bytes))
        if sample.pressure is Pressure.FULL:
            base = min(base, max(sample.used_bytes, self.limits.floor_bytes))
        less = int(base * (1 - self.limits.step)) // self.limits.block_bytes
        self._requested = min(self._requested, self._clamped(less * self.limits.block_bytes))

    def _clamped(self, num_bytes: int) -> int:
        limits = self.limits
        rounded = round_up(num_bytes, limits.block_bytes)
        return max(limits.floor_bytes, min(limits.ceiling_bytes, rounded))
