"""The worker's settings."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from anole_shared.settings import Settings
from anole_shared.units import GiB

DEFAULT_MEMORY_BYTES = 2 * GiB
"""Of a worker on a processor whose memory_bytes is unset."""

MAX_NUM_WAITING = 1024
"""Sequences that may wait at a worker; a scheduler gives it far fewer."""


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
        default=32,
        ge=1,
        le=1024,
        description="Sequences that run at once. More of them share a step's reading of the "
        "weights; each one's tokens come more slowly.",
    )
    token_budget: int = Field(
        default=256,
        ge=16,
        le=65536,
        description="New tokens in one step, at most. A long prompt is run in chunks of what "
        "decodes leave of it: more is faster to the first token, less smoother for streams.",
    )
    pace: Literal["learnt", "fixed"] = Field(
        default="learnt",
        description="How prompts and running streams share steps. learnt: a step takes as many "
        "prompt tokens as keep it under longest_step_s, by what steps have taken so far "
        "(see prompt_passing for their order). fixed: the whole token_budget in each step, in "
        "order of arrival.",
    )
    longest_step_s: float = Field(
        default=0.45,
        gt=0,
        le=60,
        description="What a step may take where prompts and streams share it: longer is faster to "
        "the first token, shorter is smoother for streams.",
    )
    prompt_passing: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="For so many times what a prompt takes others that came later may go first, so "
        "that short ones pass long ones. 0: in order of arrival. Unset: 3 on a processor, where a "
        "prompt takes seconds; 0 on a GPU, where it is the longest that wait then.",
    )
    alone_share: float = Field(
        default=0.4,
        ge=0,
        le=1,
        description="The largest of prompt steps, as a share of all, run without the streams if "
        "the prompts end in them; streams wait for longest_step_s more at most then: a step of a "
        "large prompt is long whatever rides along. 0: streams are in every step that they feel.",
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$",
        description="auto, cpu, cuda or cuda:N. auto: the first CUDA device that torch sees, else "
        "the processor.",
    )
    memory_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Memory for keys and values and for adapters together, beside the model. "
        "Whatever is idle holds adapters and the KV of known prompts; neither has a share of its "
        "own. Address space at start, memory as it is used. Unset: 2 GiB on a processor, and of a "
        "GPU what memory_fraction says.",
    )
    memory_fraction: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Of a GPU's memory that is free beside the model and the largest step, where "
        "memory_bytes is unset. The rest is for what allocations lose.",
    )
    host_bytes: int = Field(
        default=4 * GiB,
        ge=0,
        description="Host memory for copies of adapters that a GPU has, or had: in regions of "
        "memd, pinned. Loading such a one again is an upload alone. 0: none is kept. On a "
        "processor there are no copies.",
    )
    cuda_graphs: bool = Field(
        default=True,
        description="Record decode steps at start, on a GPU: some seconds and some memory, for "
        "steps that are not held up by Python.",
    )
    block_size: int = Field(
        default=16,
        ge=1,
        le=1024,
        description="Tokens per KV block. Prompts share whole blocks only.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Of weights, adapters and KV. auto: bfloat16 on processors with AVX2 "
        "or more, and on GPUs that multiply it, which is 1.1 times to several times faster and "
        "takes half the memory; else float32.",
    )
    eviction: Literal["chameleon", "fairshare", "lru", "gdsf"] = Field(
        default="gdsf",
        description="Which idle adapter goes first where memory is short. chameleon: least of "
        "0.45 frequency + 0.10 recency + 0.45 size; fairshare: the same in equal parts; lru: "
        "least recently used; gdsf: least frequency x cost / size above a rising floor.",
    )
    eviction_window_s: float = Field(
        default=300,
        gt=0,
        le=86400,
        description="For how long an adapter's use counts for its frequency and recency.",
    )
    idle_s: float = Field(
        default=60,
        gt=0,
        le=86400,
        description="For how long after its last use an adapter counts as used, for memd: the "
        "rest may be asked back where nobody needs it.",
    )
    predictive_prefetch: bool = Field(
        default=False,
        description="Load adapters into idle memory shortly before they are likely to be asked "
        "for, by the times between their requests so far.",
    )
    max_loads: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Adapters on their way at once: one is read while the next has its room.",
    )
    scan_s: float = Field(
        default=10,
        ge=0.1,
        le=3600,
        description="How often the adapter folder is looked through for new adapters. A changed "
        "one is noticed at its next request.",
    )
    num_threads: int = Field(
        default=1,
        ge=1,
        le=1024,
        description="torch's threads, each with a part of every product. More than one pays only "
        "where nothing else wants the processors: they spin, and steps take several times as long.",
    )
    step_threads: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Threads that share a step on a CPU, each with some of its tokens: from 8 "
        "tokens on in bfloat16, from 48 in float32. Unset: as many as this process may use "
        "processors, at most 4, or one where num_threads is above 1.",
    )
    drain_s: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long running sequences may go on after a stop, or after `anole drain`. "
        "What has not begun goes to other workers at once, what is left then goes on there. "
        "Whoever stops the process must wait a few seconds longer than this.",
    )
    bypass_s: float = Field(
        default=2.0,
        ge=0,
        le=3600,
        description="How long later sequences may pass one for whose adapter there is no room.",
    )
