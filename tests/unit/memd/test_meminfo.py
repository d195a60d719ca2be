from pathlib import Path

import pytest

from anole_memd.backends import meminfo
from anole_shared.errors import ConfigurationError


def test_mem_total_is_read_in_bytes(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24683656 kB\nMemFree:        1 kB\n")
    assert meminfo.total_bytes(path) == 24683656 * 1024


def test_this_host_has_memory() -> None:
    assert meminfo.total_bytes() > 2**26


@pytest.mark.parametrize("text", ["", "MemFree: 1 kB\n", "MemTotal: lots kB\n"])
def test_without_mem_total_the_operator_is_told_what_to_set(tmp_path: Path, text: str) -> None:
    path = tmp_path / "meminfo"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="set ANOLE_MEMD_BUDGET_BYTES"):
        meminfo.total_bytes(path)


def test_a_host_without_meminfo_is_told_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set ANOLE_MEMD_BUDGET_BYTES"):
        meminfo.total_bytes(tmp_path / "none")
