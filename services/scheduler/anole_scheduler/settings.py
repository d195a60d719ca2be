"""The scheduler's settings."""

from pydantic import Field

from anole_scheduler.policy_settings import PolicySettings
from anole_shared.keys import RENEW_S


class SchedulerSettings(PolicySettings):
    """Who is next, how much may wait, and how long for what."""

    scheduler_id: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Name of this scheduler, unlike any other's. Unset: host name and process id.",
    )
    max_waiting: int = Field(
        default=256,
        ge=1,
        le=16_384,
        description="Requests that wait for a worker; a new one beyond them is refused with 429. "
        "256 are minutes of work for one CPU worker: who waits longer is better told to come back.",
    )
    max_unfinished: int = Field(
        default=1792,
        ge=1,
        le=65_000,
        description="Requests that wait or run; one beyond them is refused with 429. The broker "
        "hands out this many and 256 messages unacknowledged, 2048 by default: enough for about "
        "75 workers of 16 sequences. More cost memory here, a copy of each prompt.",
    )
    admit_ahead: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Requests given to a worker beyond those that it can start at once. A few "
        "keep it busy between two messages and let adapters load meanwhile; what waits at a "
        "worker can no longer be placed better.",
    )
    output_share: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="Of its predicted output what a request is counted with when memory is given "
        "out. Sequences end one after the other, so that together they hold about half of what "
        "they will have made; where that was too little, a worker preempts its youngest. 1 never "
        "promises more than there is, and leaves a quarter of it unused (docs/simulation.md).",
    )
    max_prefetch: int = Field(
        default=4,
        ge=0,
        le=64,
        description="Waiting requests, from the head, whose adapters are loaded early. More would "
        "push out adapters that are needed sooner.",
    )
    max_loads: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Adapters that are on their way to one worker before more are asked for "
        "early. A worker loads them one after the other: what is asked for last is had last, and "
        "by then another may be more urgent.",
    )
    no_worker_timeout_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long requests wait for a first worker before they fail with 503: long "
        "enough for a worker's restart with a small model.",
    )
    worker_timeout_s: float = Field(
        default=10.0,
        ge=2 * RENEW_S,
        le=3600,
        description="A worker that was silent for so long is gone and its requests are sent "
        f"again. It reports every {RENEW_S:.0f} s, so several reports may be late.",
    )
    lost_after_s: float = Field(
        default=10.0,
        ge=2 * RENEW_S,
        le=3600,
        description="A request that its worker does not report so long after it got it is lost "
        "and sent again. Sooner could take a late message for a lost one.",
    )
    orphan_timeout_s: float = Field(
        default=30.0,
        ge=2 * RENEW_S,
        le=3600,
        description="What a worker runs and nobody asks for in so long is aborted. After a "
        "take-over the requests come again within seconds.",
    )
    settle_s: float = Field(
        default=5.0,
        ge=0,
        le=60,
        description="After a take-over nothing is admitted for so long, so that each worker "
        f"says first what it runs already: two reports of {RENEW_S:.0f} s and a margin. Less "
        "risks running a request twice. A start without requests from before does not wait.",
    )
    load_timeout_s: float = Field(
        default=60.0,
        ge=1,
        le=3600,
        description="An adapter that was to be loaded and has not come in so long is no longer "
        "expected at that worker. Far more than a load takes; it only bounds a wrong belief.",
    )
