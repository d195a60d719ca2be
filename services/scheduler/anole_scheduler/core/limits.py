"""The scheduler's bounds and waits as plain values; the settings say why each has its default."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may wait, and how long for what."""

    max_waiting: int
    """Requests that wait for a worker; a new one beyond them is refused."""
    max_unfinished: int
    """Requests that wait or run. Binds also those that were accepted once already."""
    admit_ahead: int
    """Requests given to a worker beyond those that it can start at once."""
    output_share: float
    """Of its predicted output what a request is counted with: sequences end one after the other,
    so that together they never hold all of theirs. 1 never promises more than there is."""
    max_prefetch: int
    """Waiting requests, from the head, whose adapters are asked for early."""
    max_loads: int
    """Adapters that are on their way to one worker before more are asked for early."""
    no_worker_timeout_s: float
    worker_timeout_s: float
    """A worker that was silent for so long is gone."""
    lost_after_s: float
    """A request admitted so long ago that its worker does not report is lost."""
    orphan_timeout_s: float
    """What a worker runs and nobody has asked for in so long is aborted."""
    settle_s: float
    """After a take-over: how long workers have to say what they run already."""
    load_timeout_s: float
    """An adapter that was to be loaded and has not come in so long is no longer expected."""
    max_ended: int
    """Ended requests that are remembered, so that a second delivery is not run again."""
