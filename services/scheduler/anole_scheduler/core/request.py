"""A request, and how far it has come."""

from dataclasses import dataclass
from enum import Enum, auto

from anole_scheduler.core.transition import check
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What decisions are made of; the prompt itself stays in the shell."""

    request_id: RequestId
    attempt: int
    gateway_id: GatewayId
    adapter_id: AdapterId | None
    """None runs the base model alone."""
    num_prompt_tokens: int
    max_tokens: int

    @property
    def max_len(self) -> int:
        """Tokens that it can come to hold, prompt and output together."""
        return self.num_prompt_tokens + self.max_tokens


class RequestState(Enum):
    """What one attempt at a request is doing."""

    WAITING = auto()
    """In the queue: no worker has it, as far as is known."""
    RUNNING = auto()
    """Admitted to one worker."""
    ABORTING = auto()
    """Its worker was told to stop it and has not said yet that it did."""
    FINISHED = auto()
    """Its worker has ended it."""
    ABORTED = auto()
    """Nobody waited for it any more."""
    FAILED = auto()
    """Its gateway was told that it gets no (further) answer."""


TRANSITIONS: dict[RequestState, frozenset[RequestState]] = {
    RequestState.WAITING: frozenset(
        {RequestState.RUNNING, RequestState.FINISHED, RequestState.ABORTED, RequestState.FAILED}
    ),
    RequestState.RUNNING: frozenset(
        {
            RequestState.WAITING,
            RequestState.FINISHED,
            RequestState.ABORTING,
            RequestState.FAILED,
        }
    ),
    RequestState.ABORTING: frozenset({RequestState.ABORTED}),
    RequestState.FINISHED: frozenset(),
    RequestState.ABORTED: frozenset(),
    RequestState.FAILED: frozenset(),
}
"""Every legal change. WAITING ends in FINISHED where a worker ran it under an earlier scheduler;
RUNNING becomes WAITING where the worker leaves before it has begun the request."""


@dataclass(slots=True, kw_only=True)
class Progress:
    """One attempt at a request, from its arrival to its end. Changed by the scheduler only."""

    request: Request
    arrived_s: float
    redelivered: bool
    """Whether an earlier scheduler may have admitted this very attempt."""
    state: RequestState = RequestState.WAITING
    worker_id: WorkerId | None = None
    """Where it runs, or ran."""
    admitted_s: float = 0.0
    is_prefetched: bool = False
    """Whether its adapter was asked for on its account; that happens once."""

    def move_to(self, state: RequestState) -> None:
        """Change state; raises InvalidTransition where the table does not list it."""
        check(TRANSITIONS, self.state, state)
        self.state = state
