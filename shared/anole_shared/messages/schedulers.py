"""What the active scheduler shows of itself in the store."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Size(StrEnum):
    """How much a request is expected to hold, prompt and output together."""

    SMALL = "small"
    """Up to 512 tokens."""
    MEDIUM = "medium"
    """Up to 2048."""
    LARGE = "large"


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRecord:
    """The requests of one size."""

    size: Size
    num_waiting: int
    num_admitted: int
    wait_sum_s: float
    """Of those admitted: from arrival to admission."""
    wait_counts: tuple[int, ...]
    """How many waited up to each of wait_bounds_s but longer than the one before; then the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerRecord:
    """The scheduler that the broker serves. Counts begin with its turn."""

    scheduler_id: str
    num_running: int
    """Requests that workers have."""
    sizes: tuple[SizeRecord, ...]
    wait_bounds_s: tuple[float, ...]
    failed: Mapping[str, int]
    """By FailureCode."""
    num_adapter_lookups: int
    """Admissions of requests with an adapter."""
    num_adapter_hits: int
    """Those where it was resident at the worker."""
    num_learnt: int
    """Answers from which output lengths were learnt."""
    share_in_class: float
    """Of recent predictions: in the right one of three classes of length."""
    share_within_factor_2: float
