"""How many prompt tokens the next step takes, and whether streams wait for them.

A step makes every running stream wait for the prompt chunks that ride with it, and every waiting
prompt wait for the decodes that ride with it. Mostly the two share a step: the weights are read
once. The largest prompts are another matter: the step is long whatever rides along, so streams lose
little by being left out of it, and the prompt's first token comes sooner. So the largest part of
all prompt steps runs alone; which size that is follows what is asked for.

What a step costs differs between machines by orders of magnitude, and is learnt from the steps that
have run. The caller carries no clock in here; seconds come as arguments.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_FEATURES = 4
_SCALES = (1.0, 1 / 512, 1 / 32, 1 / 8192)
"""Of one, prompt tokens, decode rows and their context, so that the numbers are of one size."""
_UNSURE = 1e3
_FORGETS_BELOW = 1e-3
"""Doubt at which no more is forgotten: what was not seen for long may not become so uncertain that
one odd step throws everything over."""
_ENOUGH_STEPS = 8
_FOLLOWS = 0.05
"""How far the size that runs alone moves with each step, as a fraction of it."""
_FIRST_LARGE_TOKENS = 256.0


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

    @property
    def token_s(self) -> float:
        """Seconds of one more prompt token."""
        return max(self._shares[1] * _SCALES[1], 1e-9)

    def predict(self, *, prompt_tokens: int, rows: int, context: int) -> float:
        """Seconds of a step of that kind; never less than nothing."""
        a, b, c, d = self._shares
        w, x, y, z = _scaled(prompt_tokens, rows, context)
        return max(0.0, a * w + b * x + c * y + d * z)

    def learn(self, *, prompt_tokens: int, rows: int, context: int, seconds: float) -> None:
        """A step has run; one that took no time says nothing."""
        if seconds <= 0:
            return
        scaled = [part / seconds for part in _scaled(prompt_tokens, rows, context)]
        error = 1.0 - _dot(self._shares, scaled)
        doubts = [_dot(row, scaled) for row in self._doubt]
        total = self._forgetting + _dot(scaled, doubts)
        gains = [doubt / total for doubt in doubts]
        self._shares = [
            share + gain * error for share, gain in zip(self._shares, gains, strict=True)
        ]
        trace = sum(self._doubt[place][place] for place in range(_FEATURES))
        forget = self._forgetting if trace < _FORGETS_BELOW else 1.0
        self._doubt = [
            [(old - gain * doubt) / forget for old, doubt in zip(row, doubts, strict=True)]
            for row, gain in zip(self._doubt, gains, strict=True)
        ]
        self.num_steps += 1


def _scaled(prompt_tokens: int, rows: int, context: int) -> tuple[float, float, float, float]:
    return 1.0, prompt_tokens * _SCALES[1], rows * _SCALES[2], context * _SCALES[3]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    a, b, c, d = left
    w, x, y, z = right
    return a * w + b * x + c * y + d * z


@dataclass(frozen=True, slots=True)
class StepShare:
    """What the next step runs."""

    prompt_tokens: int
    with_decodes: bool


class StepBudget:
    """Divides steps between prompts and streams.

    A step is as long as its prompts want, up to longest_s: streams wait no longer for it. Where
    the step's prompt tokens are among the largest part (alone_share) of what steps had lately, it
    runs without the streams, as long as they would not come to wait for twice longest_s.
    """

    def __init__(
        self,
        *,
        longest_s: float,
        alone_share: float = 0.15,
        min_tokens: int = 32,
        max_tokens: int = 8192,
    ) -> None:
        """min_tokens, max_tokens: of a step's prompt chunks, however long that takes."""
        self.seconds = StepSeconds()
        self._longest_s = longest_s
        self._alone_share = alone_share
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        self._large_tokens = _FIRST_LARGE_TOKENS
        """At or above, a step's prompts are among the largest."""
        self._waited_s = 0.0
        """What streams have been left out of since they last had a token."""

    def share(self, *, rows: int, context: int, backlog: int) -> StepShare:
        """The next step's; backlog: prompt tokens that wait, rows and context: of the decodes."""
        if backlog == 0:
            self._waited_s = 0.0
            return StepShare(0, with_decodes=True)
        tokens = self._bounded(backlog, 0.0)
        is_large = tokens > self._large_tokens
        step = _FOLLOWS * (is_large - self._alone_share)
        self._large_tokens = max(1.0, self._large_tokens * math.exp(step))
        if rows == 0:
            return StepShare(tokens, with_decodes=False)
        alone_s = self.seconds.predict(prompt_tokens=tokens, rows=0, context=0)
        if is_large and self._waited_s + alone_s <= 2 * self._longest_s:
            self._waited_s += alone_s
            return StepShare(tokens, with_decodes=False)
        self._waited_s = 0.0
        decode_s = self.seconds.predict(prompt_tokens=0, rows=rows, context=context)
        return StepShare(self._bounded(backlog, decode_s), with_decodes=True)

    def _bounded(self, backlog: int, other_s: float) -> int:
        """Of the backlog what one step takes beside what else it does."""
        most = self._max_tokens
        if self.seconds.is_known:
            most = min(most, int((self._longest_s - other_s) / self.seconds.token_s))
        return min(backlog, max(most, self._min_tokens))
