"""What of prompts and streams each step runs, and whose prompt comes first."""

from typing import Protocol

from anole_worker.core.sequence import Sequence
from anole_worker.core.step_budget import StepBudget, StepShare


class Pace(Protocol):
    """Asked before each step, told after it."""

    def key(self, sequence: Sequence) -> float:
        """The smallest prompt is run first, of equal ones the one that started first.

        It grows with the time at which the prompt came: nobody is passed for ever.
        """
        ...

    def share(self, *, rows: int, backlog: int) -> StepShare:
        """What the next step runs.

        Args:
            rows: sequences that decode.
            backlog: prompt tokens of running sequences that were not run yet.
        """
        ...

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        """A step has run."""
        ...


class FixedPace:
    """So many tokens in each step, decodes first, prompts in order of start."""

    def __init__(self, token_budget: int) -> None:
        self._token_budget = token_budget

    def key(self, sequence: Sequence) -> float:  # noqa: ARG002
        return 0.0

    def share(self, *, rows: int, backlog: int) -> StepShare:
        return StepShare(min(backlog, self._token_budget - rows), with_decodes=True)

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        """Nothing to learn."""


class LearntPace:
    """By what steps were seen to cost: see StepBudget."""

    def __init__(self, budget: StepBudget, *, token_budget: int) -> None:
        """token_budget: a step's most tokens, decodes included."""
        self._budget = budget
        self._token_budget = token_budget

    def key(self, sequence: Sequence) -> float:
        return self._budget.deadline_s(sequence.arrived_s, len(sequence.token_ids))

    def share(self, *, rows: int, backlog: int) -> StepShare:
        share = self._budget.share(rows=rows, backlog=backlog)
        most = self._token_budget - (rows if share.with_decodes else 0)
        return StepShare(min(share.prompt_tokens, most), with_decodes=share.with_decodes)

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        self._budget.learn(prompt_tokens=prompt_tokens, rows=rows, seconds=seconds)
