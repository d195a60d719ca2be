"""How long requests run, learnt from those that have ended."""

from anole_scheduler.core.request import Progress

_FORGET = 0.995
"""Of what was known stays with each end: about the last 200 count."""


class Pace:
    """Seconds from admission to end, in proportion to tokens; nothing is known of the machine.

    A prompt's token counts a fixed share of an output's: prompts are computed many at once.
    """

    PROMPT_SHARE = 0.1

    def __init__(self) -> None:
        self._seconds = 0.0
        self._tokens = 0.0

    def learn(self, progress: Progress, now: float) -> None:
        """A request has run to its end."""
        if progress.num_output_tokens is None:
            return
        tokens = self._weigh(progress.request.num_prompt_tokens, progress.num_output_tokens)
        self._seconds = _FORGET * self._seconds + (now - progress.admitted_s)
        self._tokens = _FORGET * self._tokens + tokens

    def duration_s(self, progress: Progress) -> float:
        """How long the request is expected to run; 0 while nothing is known."""
        if self._tokens <= 0:
            return 0.0
        tokens = self._weigh(progress.request.num_prompt_tokens, progress.predicted_tokens)
        return tokens * self._seconds / self._tokens

    def left_s(self, progress: Progress, now: float) -> float:
        """How much longer a running request is expected to run; at least 0."""
        return max(0.0, progress.admitted_s + self.duration_s(progress) - now)

    def _weigh(self, num_prompt_tokens: int, num_output_tokens: int) -> float:
        return self.PROMPT_SHARE * num_prompt_tokens + num_output_tokens
