"""Shortest job first, with ageing."""

from anole_scheduler.core.policy import Key
from anole_scheduler.core.request import Progress


class ShortestFirst:
    """Fewest predicted output tokens first, each second of waiting counted as some of them.

    Source: the baseline S-LoRA+SJF of Chameleon (MICRO'25), section 5.1, after muServe; the rate
    is not given there. predicted - rate x wait orders two requests the same way at any time, so the
    key is fixed, and whoever waits is passed for a bounded time only.
    """

    def __init__(self, tokens_per_s: float) -> None:
        """tokens_per_s: the worth of a second's wait."""
        self._tokens_per_s = tokens_per_s

    def key(self, progress: Progress, now: float) -> Key:  # noqa: ARG002
        return progress.predicted_tokens + self._tokens_per_s * progress.first_arrived_s
