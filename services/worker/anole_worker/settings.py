"""The worker's settings."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_shared.settings import Settings
from anole_shared.units import GiB


class WorkerSettings(Settings):
    """What one worker may use, and how it forms its steps."""

    model_config = SettingsConfigDict(env_prefix="ANOLE_WORKER_", frozen=True, extra="forbid")

    worker_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Name of this worker, unlike any other's. Unset: host name and process id.",
    )
    adapters: Path | None = Field(
        default=None,
        description="Folder of adapters, one PEFT directory each; its name is the adapter's. "
        "Unset: the base model alone.",
    )
    max_num_seqs: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Sequences that run at once. On a CPU a step of 16 takes about three times "
        "as long as a step of 1; beyond that throughput hardly grows.",
    )
    token_budget: int = Field(
        default=256,
        ge=16,
        le=65536,
        description="New tokens in one step. A long prompt is run in chunks of what decodes leave "
        "of it: more is faster to the first token, less is smoother for running streams.",
    )
    kv_cache_bytes: int = Field(
        default=1 * GiB,
        ge=1,
        description="Size of the KV pool: address space at start, memory as it is written.",
    )
    block_size: int = Field(default=16, ge=1, le=1024, description="Tokens per KV block.")
    adapter_bytes: int = Field(
        default=1 * GiB, ge=1, description="Memory that adapters' weights may take."
    )
    num_threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="torch threads. One is best where cores are shared: spinning threads slow "
        "decoding several times; run more workers instead.",
    )
    bypass_s: float = Field(
        default=2.0,
        ge=0,
        le=3600,
        description="How long later sequences may pass one for whose adapter there is no room.",
    )
