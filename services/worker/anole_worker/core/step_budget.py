"""How many prompt tokens the next step takes, and whether streams wait for them.

A step makes every running stream wait for the prompt chunks that ride with it, and every waiting
prompt wait for the decodes that ride with it. Mostly the two share a step: the weights are read
once. Two kinds of prompt steps are another matter, if the prompts end in them. Large ones: the step
is long whatever rides along, so streams lose little by being left out of it, and first tokens come
sooner. And any, while prompts come so seldom that streams hardly feel them. A prompt that takes
several steps shares them all: leaving streams out of every second one would halve their speed, and
save the prompt little.

What a step costs differs between machines by orders of magnitude, and is learnt from the steps that
have run. There is no clock in here; seconds come as arguments.
"""

import math
from dataclasses import dataclass

_FADES = 0.98
"""Of what was known of prompts stays with each step that has some: about the last 50 count."""
_ENOUGH_STEPS = 4
PASSING_ON_CPU = 3.0
"""What a worker on a processor lets be passed, where a prompt takes seconds: in order of arrival
short prompts beside long ones waited four times as long. On a GPU the longest prompts, which are
the 99th percentile of first tokens, would be up to a tenth later, and short ones hardly earlier."""
_SHORTEST_S = 1e-5
_LEAST_SHARE = 0.1
"""Of a step with both, that its prompts are taken to have cost at least."""
_MAX_GROWTH = 2.0
"""By which the cost of decodes is taken to have changed at most since they last ran alone."""
_UNFELT = 1.05
"""Times what decodes cost alone: a mean gap below that means that streams hardly feel prompts."""
_FOLLOWS = 0.05
"""How far the size that runs alone moves with each step, as a fraction of it."""
_FIRST_LARGE_TOKENS = 256.0
_FIRST_TOKENS = 64
"""Of prompts in a step while it is not known what they cost: on a CPU that may be 0.2 s."""


class StepSeconds:
    """What prompts and decodes cost, each from the steps that tell it most plainly.

    A prompt token costs what the prompt steps have cost over their tokens, each counted by its
    tokens (least squares through the origin), since it is the large ones that are asked about;
    decodes cost what they did when they last ran alone, in proportion to their number. A
    regression over tokens, rows and context knows more on paper. In simulation it failed: what one
    kind of step does not show drifts with the noise of the other kind, until a prompt token seems
    to cost seconds and prompts are all but stopped. Sums of what was seen cannot drift.
    """

    def __init__(self) -> None:
        self._num_steps = 0
        self._prompt_s = 0.0
        self._prompt_tokens = 0.0
        self._decode_s = 0.0
        self._decode_rows = 0

    @property
    def is_known(self) -> bool:
        """Whether enough prompt steps were seen to say what a token costs."""
        return self._num_steps >= _ENOUGH_STEPS

    @property
    def token_s(self) -> float:
        """Seconds of a prompt token, its part of the step's fixed costs included."""
        return self._prompt_s / self._prompt_tokens if self._prompt_tokens else _SHORTEST_S

    def decode_s(self, rows: int) -> float:
        """Seconds of a step in which so many sequences decode; 0 while none has."""
        if self._decode_rows == 0:
            return 0.0
        growth = rows / self._decode_rows
        return self._decode_s * min(max(growth, 1 / _MAX_GROWTH), _MAX_GROWTH)

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        """A step has run; one that took no time says nothing."""
        if seconds < _SHORTEST_S:
            return
        if prompt_tokens == 0:
            self._decode_s, self._decode_rows = seconds, rows
            return
        rest_s = seconds - self.decode_s(rows) if rows else seconds
        cost_s = max(rest_s, _LEAST_SHARE * seconds)
        self._prompt_s = _FADES * self._prompt_s + prompt_tokens * cost_s
        self._prompt_tokens = _FADES * self._prompt_tokens + prompt_tokens * prompt_tokens
        self._num_steps += 1


@dataclass(frozen=True, slots=True)
class StepShare:
    """What the next step runs."""

    prompt_tokens: int
    with_decodes: bool


class StepBudget:
    """Divides steps between prompts and streams.

    A step is as long as its prompts want, up to longest_s: streams wait no longer for it (prompts
    have half of that at least, however many the streams are). It runs without the streams where all
    prompts end in it, they are among the largest part (alone_share) of what steps had lately, or
    prompts have made streams slower by 5 % at most; as long as the streams would not come to wait
    for twice longest_s.
    """

    def __init__(
        self,
        *,
        longest_s: float,
        alone_share: float = 0.4,
        passing: float = 0.0,
        min_tokens: int = 32,
        max_tokens: int = 8192,
    ) -> None:
        """Know nothing of what steps cost.

        passing: for so many times what a prompt takes others that came later may go first.
        min_tokens, max_tokens: of a step's prompt chunks, however long that takes.
        """
        self.seconds = StepSeconds()
        self._longest_s = longest_s
        self._alone_share = alone_share
        self._passing = passing
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        self._large_tokens = _FIRST_LARGE_TOKENS
        """At or above, a step's prompts are among the largest."""
        self._waited_s = 0.0
        """What the steps took that streams were left out of since they last had a token."""
        self._expected_s = 0.0
        """What those of them take that have not ended, by their tokens."""
        self._gap_s = 0.0
        """Between two tokens of a stream, lately."""
        self._since_s = 0.0

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        """A step has run; rows: those that decoded in it."""
        self.seconds.learn(prompt_tokens=prompt_tokens, rows=rows, seconds=seconds)
        self._since_s += seconds
        if rows:
            self._gap_s += (1 - _FADES) * (self._since_s - self._gap_s)
            self._since_s = self._waited_s = 0.0
        elif self._expected_s:
            # A short step costs more than its tokens: by these alone many would seem to be nothing.
            self._waited_s += seconds
        self._expected_s = 0.0

    def deadline_s(self, arrived_s: float, prompt_tokens: int) -> float:
        """By which prompts are run, the earliest first: later the longer a prompt is.

        It depends on when the prompt came: nobody is passed for ever.
        """
        token_s = self.seconds.token_s if self.seconds.is_known else 0.0
        return arrived_s + self._passing * token_s * prompt_tokens

    def share(self, *, rows: int, backlog: int) -> StepShare:
        """The next step's; rows: sequences that decode; backlog: prompt tokens that wait."""
        if backlog == 0:
            return StepShare(0, with_decodes=True)
        tokens = self._bounded(backlog, 0.0)
        is_large = self._is_large(tokens)
        if rows == 0:
            self._since_s = self._waited_s = 0.0
            return StepShare(tokens, with_decodes=False)
        goes_alone = tokens == backlog and (is_large or self._is_unfelt(rows))
        if goes_alone and self._waited_s + self._expected_s < self._longest_s:
            self._expected_s += tokens * self.seconds.token_s
            return StepShare(tokens, with_decodes=False)
        other_s = min(self.seconds.decode_s(rows), self._longest_s / 2)
        return StepShare(self._bounded(backlog, other_s), with_decodes=True)

    def _is_large(self, tokens: int) -> bool:
        """Whether so many are among the largest part; which size that is follows what comes."""
        is_large = tokens > self._large_tokens
        step = _FOLLOWS * (is_large - self._alone_share)
        self._large_tokens = max(1.0, self._large_tokens * math.exp(step))
        return is_large

    def _is_unfelt(self, rows: int) -> bool:
        return 0 < self._gap_s < _UNFELT * self.seconds.decode_s(rows)

    def _bounded(self, backlog: int, other_s: float) -> int:
        """Of the backlog what one step takes beside what else it does."""
        most = min(self._max_tokens, _FIRST_TOKENS)
        if self.seconds.is_known:
            most = min(self._max_tokens, int((self._longest_s - other_s) / self.seconds.token_s))
        return min(backlog, max(most, self._min_tokens))
