"""A request, and how far it has come."""

from dataclasses import dataclass
from enum import auto

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.transition import State, check
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


class RequestState(State):
    """What one attempt at a request is doing."""

    WAITING = auto()
    """In the queue: no worker has it, as far as is known."""
    RUNNING = auto()
    """Admitted to one worker."""
    ABORTING = auto()
    """Its worker was told to stop it and has not said yet that it did."""
    SQUASHING = auto()
    """Its worker was told to stop it so that one that it had passed can run; it will run again."""
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
            RequestState.SQUASHING,
            RequestState.FAILED,
        }
    ),
    RequestState.SQUASHING: frozenset(
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

_AT_WORKER = frozenset({RequestState.RUNNING, RequestState.ABORTING, RequestState.SQUASHING})


@dataclass(slots=True, kw_only=True)
class Progress:
    """One attempt at a request, from its arrival to its end. Changed by the scheduler only."""

    request: Request
    arrived_s: float
    first_arrived_s: float
    """When the first attempt at the request came: its place in the order."""
    redelivered: bool
    """Whether an earlier scheduler may have admitted this very attempt."""
    predicted_tokens: int
    """Output tokens that this attempt is expected to have, from 1 to its max_tokens."""
    adapter: Adapter | None = None
    """Its adapter as it was recorded when the request came, if it was."""
    was_squashed: bool = False
    """Whether an attempt at the request was squashed: that happens once at most."""
    state: RequestState = RequestState.WAITING
    worker_id: WorkerId | None = None
    """Where it runs, or ran."""
    admitted_s: float = 0.0
    num_output_tokens: int | None = None
    """How many tokens it had in the end, where it ran to its end."""
    is_prefetched: bool = False
    """Whether its adapter was asked for on its account; that happens once."""
    possible_since: int | None = None
    """The version of the cluster at which it was found that some worker can ever run it."""
    seen_by: int | None = None
    """How many adapters had gone when its own was last seen at a worker."""
    reserved_at: WorkerId | None = None
    """The worker that may be given nothing else before it."""

    @property
    def predicted_len(self) -> int:
        """Tokens that it is expected to hold in the end, prompt and output together."""
        return self.request.num_prompt_tokens + self.predicted_tokens

    @property
    def is_at_worker(self) -> bool:
        """Whether a worker has it, as far as is known."""
        return self.state in _AT_WORKER

    def move_to(self, state: RequestState) -> None:
        """Change state; raises InvalidTransition where the table does not list it."""
        check(TRANSITIONS, self.state, state)
        self.state = state
