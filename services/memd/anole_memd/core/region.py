"""Region: what one lease is over, in size and in name."""

import re

_MAX_NAME_CHARS = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


def region_name(purpose: str) -> str:
    """What purpose becomes in a log line and in /proc: short, and of plain characters only."""
    return _UNUSUAL.sub("_", purpose[:_MAX_NAME_CHARS]) or "region"
