"""In which order a simulated worker runs prompts, and what of them each step takes."""

from typing import Protocol

from anole_sim.sequence import Sequence
from anole_worker.core.step_budget import StepBudget, StepShare


class Pace(Protocol):
    """Asked in each step of an engine that runs prompts by chunks; told of every step."""

    def key(self, sequence: Sequence) -> float:
        """The smallest is run first, of equal ones the one that started first."""
        ...

    def share(self, *, rows: int, backlog: int) -> StepShare:
        """What the next step runs; backlog: prompt tokens that wait."""
        ...

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None: ...


class Fixed:
    """So many tokens in each step, decodes first, prompts in order of start."""

    def __init__(self, token_budget: int) -> None:
        self._token_budget = token_budget

    def key(self, sequence: Sequence) -> float:  # noqa: ARG002
        return 0.0

    def share(self, *, rows: int, backlog: int) -> StepShare:
        return StepShare(min(backlog, max(1, self._token_budget - rows)), with_decodes=rows > 0)

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        pass


class Shared:
    """The worker's step budget, and its order of prompts."""

    def __init__(self, budget: StepBudget, *, token_budget: int) -> None:
        """token_budget: a step's most tokens, decodes included."""
        self._budget = budget
        self._token_budget = token_budget

    def key(self, sequence: Sequence) -> float:
        return self._budget.deadline_s(sequence.arrived_s, sequence.prompt)

    def share(self, *, rows: int, backlog: int) -> StepShare:
        share = self._budget.share(rows=rows, backlog=backlog)
        most = self._token_budget - (rows if share.with_decodes else 0)
        return StepShare(min(share.prompt_tokens, max(most, 0)), with_decodes=share.with_decodes)

    def learn(self, *, prompt_tokens: int, rows: int, seconds: float) -> None:
        self._budget.learn(prompt_tokens=prompt_tokens, rows=rows, seconds=seconds)
