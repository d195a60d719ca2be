"""Sandboxes without control groups; with them: tests/integration/test_memd_sandbox.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import pytest

from anole_memd import sandbox
from anole_memd.backends import cgroup
from anole_memd.errors import MemdUnavailable
from anole_memd.sandbox import Supervisor
from anole_shared.ids import LeaseId, RegionId
from anole_shared.messages import LeaseGranted


class GoneMemd:
    """Grants a lease and is killed then."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        return None

    def lease(self, num_bytes: int, **_: object) -> tuple[LeaseGranted, None]:
        region_id, lease_id = RegionId("region-1"), LeaseId("lease-1")
        return LeaseGranted(region_id=region_id, lease_id=lease_id, num_bytes=num_bytes), None

    def release(self, lease_id: LeaseId) -> None:
        raise MemdUnavailable(f"no memd answers at {self._path} for {lease_id}")


async def test_how_a_program_ended_is_told_though_memd_was_killed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def confined(*_: object) -> AsyncIterator[str]:
        yield "ended"

    monkeypatch.setattr(sandbox, "MemdClient", GoneMemd)
    monkeypatch.setattr(cgroup, "parent", lambda **_: tmp_path)
    monkeypatch.setattr(Supervisor, "_confined", confined)
    async with Supervisor(tmp_path / "memd", memory_bytes=1).running(["true"]) as running:
        assert str(running) == "ended"
    assert "lease-1 is not released" in caplog.text
