"""/proc/meminfo: how much memory the host has."""

import re
from pathlib import Path

from anole_shared.errors import ConfigurationError
from anole_shared.units import KiB

MEMINFO = Path("/proc/meminfo")

_MEM_TOTAL = re.compile(r"MemTotal:\s+(\d+) kB")


def total_bytes(meminfo: Path = MEMINFO) -> int:
    """MemTotal, in bytes.

    Raises:
        ConfigurationError: there is no such line, so the budget must be set by hand.
    """
    try:
        lines = meminfo.read_text().splitlines()
    except OSError as fault:
        raise _unknown(meminfo) from fault
    for line in lines:
        if found := _MEM_TOTAL.fullmatch(line):
            return int(found[1]) * KiB
    raise _unknown(meminfo)


def _unknown(meminfo: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{meminfo} does not tell the host's memory: set ANOLE_MEMD_BUDGET_BYTES"
    )
