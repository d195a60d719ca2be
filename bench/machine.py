"""What the figures were measured on, without a word that tells whose machine it was."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[1]
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16", "sve")
_PACKAGES = ("anole", "torch", "transformers", "peft", "numpy", "safetensors")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


def describe() -> dict[str, Any]:
    """Processor, memory, kernel and versions."""
    model, flags = _processor(Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "features": [flag for flag in _FEATURES if flag in flags],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "huge_pages": {name: _chosen(_HUGE_PAGES / name) for name in ("enabled", "shmem_enabled")},
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def name_of(machine: Mapping[str, Any]) -> str:
    """A name for files: the processor and how many of its cores."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", str(machine["cpu"]).lower())
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")
    return f"{slug or 'machine'}-{machine['cores']}-cores"


def commit() -> str:
    """Of the source tree, with "-dirty" behind it where files differ; "unknown" without git."""
    try:
        told = subprocess.run(  # noqa: S603 - no part of it comes from outside
            ["git", "-C", SOURCE, "describe", "--always", "--dirty"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return "unknown"
    return told.stdout.strip() or "unknown"


def _processor(info: str) -> tuple[str, frozenset[str]]:
    """Model and flags out of /proc/cpuinfo, whose words differ between architectures."""
    fields: dict[str, str] = {}
    for line in info.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    return fields.get("model name", platform.machine()), frozenset(flags.split())


def _chosen(path: Path) -> str:
    """The setting in brackets of a file of the kernel's, e.g. "always [madvise] never"."""
    try:
        found = re.search(r"\[(\w+)\]", path.read_text())
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
