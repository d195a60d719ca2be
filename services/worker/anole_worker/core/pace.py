"""How many prompt tokens a step takes beside its decodes, and whose come first."""

from typing import Protocol

from anole_worker.core.sequence import Sequence
from anole_worker.core.step_budget import StepBudget


class Pace(Protocol):
    """Asked before each step, told after it."""

    def key(self, sequence: Sequence) -> float:
        """The smallest prompt is run first, of equal ones the one that started first.

        It may only depend on what does not change while the prompt waits: then nobody is passed
        for ever.
        """
        ...

    def tokens(self, *, rows: int, context: int, backlog: int) -> int:
        """Prompt tokens of the next step.

        Args:
            rows: sequences that decode in it.
            context: tokens that these attend to.
            backlog: prompt tokens of running sequences that were not run yet.
        """
        ...

    def learn(self, *, prompt_tokens: int, rows: int, context: int, seconds: float) -> None:
        """A step has run."""
        ...


class FixedPace:
    """So many tokens in each step, decodes first, prompts in order of start."""

    def __init__(self, token_budget: int) -> None:
        self._token_budget = token_budget

    def key(self, sequence: Sequence) -> float:  # noqa: ARG002
        return 0.0

    def tokens(self, *, rows: int, context: int, backlog: int) -> int:  # noqa: ARG002
        return self._token_budget - rows

    def learn(self, *, prompt_tokens: int, rows: int, context: int, seconds: float) -> None:
        """Nothing to learn."""


class LearntPace:
    """As many as two promises allow: the gap between a stream's tokens, and the first token.

    Prompts are run by a virtual deadline: when they came, and later the longer they are. A short
    one passes a long one that came a little before, and no prompt is passed for ever.
    """

    def __init__(self, budget: StepBudget, *, token_budget: int, weight: float) -> None:
        """token_budget: a step's most tokens, decodes included.

        weight: by how many times the seconds that a prompt takes its deadline is later.
        """
        self._budget = budget
        self._token_budget = token_budget
        self._weight = weight

    def key(self, sequence: Sequence) -> float:
        seconds = self._budget.seconds
        token_s = seconds.token_s if seconds.is_known else 0.0
        return sequence.arrived_s + self._weight * token_s * len(sequence.token_ids)

    def tokens(self, *, rows: int, context: int, backlog: int) -> int:
        wanted = self._budget.tokens(rows=rows, context=context, backlog=backlog)
        return min(wanted, self._token_budget - rows)

    def learn(self, *, prompt_tokens: int, rows: int, context: int, seconds: float) -> None:
        self._budget.seconds.learn(
            prompt_tokens=prompt_tokens, rows=rows, context=context, seconds=seconds
        )
