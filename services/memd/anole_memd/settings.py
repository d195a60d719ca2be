"""memd's settings."""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_memd.backend_settings import BackendSettings
from anole_memd.backends import meminfo


def _half_of_memory() -> int:
    return meminfo.total_bytes() // 2


class MemdSettings(BackendSettings):
    """What memd is told beyond the common settings."""

    model_config = SettingsConfigDict(env_prefix="ANOLE_MEMD_", frozen=True, extra="forbid")

    budget_bytes: int = Field(
        default_factory=_half_of_memory,
        gt=0,
        description="Most bytes that are leased at once. Unset: half of the host's memory.",
    )
    floor_bytes: int | None = Field(
        default=None,
        ge=0,
        description="Bytes below which none are asked back. Unset: a quarter of the budget.",
    )
    journal: Path | None = Field(
        default=None,
        description="File that memd finds its leases again by after it was killed. Unset: beside "
        "the socket; on a disk each lease waits for it.",
    )
    hold_s: float = Field(
        default=300.0,
        gt=0,
        description="Seconds that memory must have been unused before it is asked back.",
    )
    headroom: float = Field(
        default=0.1, ge=0, le=1, description="Part of what is used that is kept besides, unused."
    )
    revoke_s: float = Field(
        default=5.0, gt=0, le=600, description="Seconds that holders have to give memory back."
    )
    pressure_some: float = Field(
        default=10.0,
        gt=0,
        le=100,
        description="From which percentage of time with a task waiting for memory (PSI some, 10 s) "
        "on memory is asked back.",
    )
    pressure_full: float = Field(
        default=5.0,
        gt=0,
        le=100,
        description="The same with all tasks waiting (PSI full): then memory that is used, too.",
    )
    backend_s: float = Field(
        default=30.0, gt=0, description="Seconds that the kernel or hypervisor has for one answer."
    )
    allowed_uids: str = Field(
        default="",
        pattern=r"^\s*(\d+(\s*,\s*\d+)*)?\s*$",
        description="Users who may connect besides memd's own and root: numbers, with commas.",
    )
    metrics_port: int | None = Field(
        default=None,
        gt=0,
        lt=65536,
        description="Loopback port for Prometheus. Unset: no metrics are served.",
    )
    max_connections: int = Field(
        default=64, gt=0, le=4096, description="Most workers (and status calls) connected at once."
    )
    max_leases_per_connection: int = Field(
        default=4096, gt=0, description="Most regions that one process holds at once."
    )

    @property
    def floor(self) -> int:
        """The floor, in bytes: never above the budget."""
        wanted = self.budget_bytes // 4 if self.floor_bytes is None else self.floor_bytes
        return min(wanted, self.budget_bytes)

    @property
    def uids(self) -> frozenset[int]:
        """Who may connect."""
        named = {int(uid) for uid in self.allowed_uids.split(",") if uid.strip()}
        return frozenset({0, os.getuid(), *named})
