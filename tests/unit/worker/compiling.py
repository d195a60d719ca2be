"""Compiles kernels for a Hopper GPU that is not there, and launches none."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver


class NoGpu:
    """As much of a driver as compiling needs."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """Stands for a kernel: compiles it for each launch, and launches nothing."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.results: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.results.append(self.kernel.warmup(grid=grid, **arguments))


def compiling(
    monkeypatch: pytest.MonkeyPatch, cache: Path, module: ModuleType, kernels: Mapping[str, Any]
) -> list[Compiled]:
    """Have the module compile these kernels, which it launches by these names."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(cache))
    monkeypatch.setattr(driver, "_active", NoGpu())
    found = [Compiled(kernel) for kernel in kernels.values()]
    for name, compiled in zip(kernels, found, strict=True):
        caches: dict[int, Any] = defaultdict(compiled.kernel.create_binder)
        monkeypatch.setattr(compiled.kernel, "device_caches", caches)
        monkeypatch.setattr(module, name, compiled)
    return found
