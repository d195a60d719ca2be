"""Region: what one lease is over, in size and in name."""

import re

from anole_shared.units import MiB, round_up

HUGE_PAGE_BYTES = 2 * MiB
"""Regions are whole huge pages: those are given back far faster than pages of 4 KiB."""

_MAX_NAME_CHARS = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


def region_bytes(num_bytes: int) -> int:
    """The size of the region that holds num_bytes."""
    return round_up(num_bytes, HUGE_PAGE_BYTES)


def region_name(purpose: str) -> str:
    """What purpose becomes in a log line and in /proc: short, and of plain characters only."""
    return _UNUSUAL.sub("_", purpose[:_MAX_NAME_CHARS]) or "region"
