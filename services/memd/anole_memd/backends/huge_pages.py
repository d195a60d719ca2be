"""Transparent huge pages for shared memory: whether a mapping that asks for them gets them."""

from pathlib import Path

SYSFS = Path("/sys/kernel/mm/transparent_hugepage")

_GIVEN = {"always", "within_size", "advise", "force"}


def are_given(sysfs: Path = SYSFS) -> bool:
    """Whether regions get huge pages, see Documentation/admin-guide/mm/transhuge.rst of Linux."""
    mode = _chosen(sysfs / "hugepages-2048kB" / "shmem_enabled")
    if mode in {None, "inherit"}:
        mode = _chosen(sysfs / "shmem_enabled")
    return mode in _GIVEN


def _chosen(path: Path) -> str | None:
    """The word in brackets; None where this kernel has no such switch."""
    try:
        words = path.read_text().split()
    except OSError:
        return None
    return next((word[1:-1] for word in words if word.startswith("[")), None)
