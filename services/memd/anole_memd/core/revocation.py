"""Revocation: memory asked back of one holder, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from anole_memd.core.lease import Holder


class RevocationState(StrEnum):
    """What has come of it."""

    ASKED = "asked"
    MET = "met"
    """All of it is back."""
    SHORT = "short"
    """Some of it is back; the holder says why not more, or its time ran out."""
    REFUSED = "refused"
    """The holder has answered, and gave nothing."""
    SILENT = "silent"
    """Nothing is back, and the holder has not answered in time."""


REVOCATION_TRANSITIONS: Mapping[RevocationState, frozenset[RevocationState]] = {
    RevocationState.ASKED: frozenset(RevocationState) - {RevocationState.ASKED},
    RevocationState.MET: frozenset(),
    RevocationState.SHORT: frozenset(),
    RevocationState.REFUSED: frozenset(),
    RevocationState.SILENT: frozenset(),
}
"""Every legal change: it ends once."""


def outcome(asked_bytes: int, given_bytes: int, *, has_answered: bool) -> RevocationState:
    """How a revocation ends."""
    if given_bytes >= asked_bytes:
        return RevocationState.MET
    if given_bytes > 0:
        return RevocationState.SHORT
    return RevocationState.REFUSED if has_answered else RevocationState.SILENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one holder has, and how much of that it says it uses."""

    holder: Holder
    leased_bytes: int
    used_bytes: int


def shares(claims: Sequence[Claim], num_bytes: int) -> dict[Holder, int]:
    """How much to ask of each holder.

    First of what they do not use, in proportion to that; then, of what is still short, in
    proportion to what they have. Never more of one than it has.
    """
    asked: dict[Holder, int] = {}
    idle = {c.holder: max(0, c.leased_bytes - c.used_bytes) for c in claims}
    rest = {c.holder: c.leased_bytes - idle[c.holder] for c in claims}
    for pool in (idle, rest):
        missing = num_bytes - sum(asked.values())
        for holder, part in _in_proportion(pool, missing).items():
            asked[holder] = asked.get(holder, 0) + part
    return {holder: part for holder, part in asked.items() if part > 0}


def _in_proportion(pool: Mapping[Holder, int], num_bytes: int) -> dict[Holder, int]:
    total = sum(pool.values())
    if num_bytes <= 0 or total == 0:
        return {}
    if num_bytes >= total:
        return dict(pool)
    parts = {holder: has * num_bytes // total for holder, has in pool.items()}
    for holder in sorted(pool, key=lambda holder: -pool[holder]):
        short = num_bytes - sum(parts.values())
        parts[holder] += max(0, min(short, pool[holder] - parts[holder]))
    return parts
