"""How many prompt tokens the next step takes: as many as both latencies allow.

A step makes every running stream wait for the prompt chunks that ride with it, and every waiting
prompt wait for the chunks that did not. What a step costs differs between machines by orders of
magnitude, so it is learnt from the steps that have run.
"""

from collections.abc import Sequence

_FEATURES = 4
_SCALES = (1.0, 1 / 512, 1 / 32, 1 / 8192)
"""Of one, prompt tokens, decode rows and their context, so that the numbers are of one size."""
_UNSURE = 1e3
_MAX_UNSURE = 1e6
_ENOUGH_STEPS = 8


class StepSeconds:
    """What a step takes: a sum of shares for being a step, prompt tokens, rows and context.

    Recursive least squares with forgetting: exact after a few steps where the costs are linear,
    and following where they change (another clock rate, other adapters). It learns each step's
    error relative to its length, so that many short steps weigh no less than a long one.
    Source: L. Ljung, System Identification (1999), section 11.2.
    """

    def __init__(self, forgetting: float = 0.998) -> None:
        self.num_steps = 0
        self._forgetting = forgetting
        self._shares = [0.0] * _FEATURES
        self._doubt = [
            [_UNSURE if row == column else 0.0 for column in range(_FEATURES)]
            for row in range(_FEATURES)
        ]

    @property
    def is_known(self) -> bool:
        """Whether enough steps were seen for a prediction to mean something."""
        return self.num_steps >= _ENOUGH_STEPS

    def predict(self, *, prompt_tokens: int, rows: int, context: int) -> float:
        """Seconds of a step of that kind; never less than nothing."""
        scaled = _scaled(prompt_tokens, rows, context)
        return max(0.0, sum(map(float.__mul__, self._shares, scaled)))

    @property
    def token_s(self) -> float:
        """Seconds of one more prompt token."""
        return max(self._shares[1] * _SCALES[1], 1e-9)

    def learn(self, *, prompt_tokens: int, rows: int, context: int, seconds: float) -> None:
        """A step has run."""
        weight = 1 / max(seconds, 1e-6)
        scaled = [part * weight for part in _scaled(prompt_tokens, rows, context)]
        error = 1.0 - sum(map(float.__mul__, self._shares, scaled))
        if seconds <= 0:
            return
        doubts = [sum(map(float.__mul__, row, scaled)) for row in self._doubt]
        total = self._forgetting + sum(map(float.__mul__, scaled, doubts))
        gains = [doubt / total for doubt in doubts]
        self._shares = [
            share + gain * error for share, gain in zip(self._shares, gains, strict=True)
        ]
        self._shrink_doubt(gains, doubts)
        self.num_steps += 1

    def _shrink_doubt(self, gains: Sequence[float], doubts: Sequence[float]) -> None:
        """What was not seen for long may not become infinitely uncertain: bounded from above."""
        trace = sum(self._doubt[place][place] for place in range(_FEATURES))
        forget = self._forgetting if trace < _MAX_UNSURE else 1.0
        self._doubt = [
            [(old - gain * doubt) / forget for old, doubt in zip(row, doubts, strict=True)]
            for row, gain in zip(self._doubt, gains, strict=True)
        ]


def _scaled(prompt_tokens: int, rows: int, context: int) -> tuple[float, ...]:
    return (
        _SCALES[0],
        prompt_tokens * _SCALES[1],
        rows * _SCALES[2],
        context * _SCALES[3],
    )


class StepBudget:
    """Chooses how many prompt tokens ride with the decodes.

    While prompts wait little, a step is kept under the time between two tokens that streams are
    promised. A backlog that this would not clear in the time that a first token may take makes
    steps longer, up to the whole backlog at once: then first tokens are what is late.
    """

    def __init__(
        self, *, token_gap_s: float, first_token_s: float, min_tokens: int, max_tokens: int
    ) -> None:
        """token_gap_s: what a step may take; first_token_s: in what time prompts should be run."""
        self.seconds = StepSeconds()
        self._token_gap_s = token_gap_s
        self._first_token_s = first_token_s
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens

    def tokens(self, *, rows: int, context: int, backlog: int) -> int:
        """Prompt tokens for the next step; backlog: those that wait, rows and context: decodes."""
        if rows == 0 or not self.seconds.is_known:
            return min(self._max_tokens, max(backlog, self._min_tokens))
        token_s = self.seconds.token_s
        fixed_s = self.seconds.predict(prompt_tokens=0, rows=rows, context=context)
        under_gap = int((self._token_gap_s - fixed_s) / token_s)
        num_steps = self._steps_to_clear(backlog, fixed_s, token_s)
        wanted = max(under_gap, -(-backlog // num_steps), self._min_tokens)
        return min(wanted, self._max_tokens)

    def _steps_to_clear(self, backlog: int, fixed_s: float, token_s: float) -> int:
        """In how many steps the backlog can be spread and still be run in time."""
        spare_s = self._first_token_s - backlog * token_s
        return max(1, int(spare_s / max(fixed_s, 1e-6)))
