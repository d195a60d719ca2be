"""One token stream being generated, and the phases it goes through."""

from dataclasses import dataclass, field
from enum import Enum, auto

from anole_shared.ids import AdapterId, GatewayId, RequestId
from anole_worker.core.step import Sampling


class Phase(Enum):
    """What a sequence is doing on this worker."""

    WAITING = auto()
    """For its adapter, its blocks or a place in the batch."""
    PREFILL = auto()
    """Its prompt is being run, chunk by chunk."""
    DECODE = auto()
    """It gets one token a step."""
    FINISHED = auto()
    """It holds nothing any more."""


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.PREFILL, Phase.FINISHED}),
    Phase.PREFILL: frozenset({Phase.DECODE, Phase.FINISHED}),
    Phase.DECODE: frozenset({Phase.FINISHED}),
    Phase.FINISHED: frozenset(),
}
"""Every legal change of phase."""


class Ending(Enum):
    """Why a sequence ended."""

    STOP = auto()
    LENGTH = auto()
    ABORT = auto()
    ERROR = auto()


@dataclass(slots=True, kw_only=True)
class Sequence:
    """A request's token stream with all it holds. Owned and changed by the engine core only."""

    request_id: RequestId
    attempt: int
    gateway_id: GatewayId
    adapter_id: AdapterId | None
    token_ids: list[int]
    """The prompt, and behind it what was generated."""
    num_prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    ignore_eos: bool
    arrived_s: float
    phase: Phase = Phase.WAITING
    num_computed_tokens: int = 0
    """Tokens whose KV is in the pool."""
    block_table: tuple[int, ...] = field(default=())
    is_pinning: bool = False
    """Whether it holds a pin on its adapter."""
    is_aborted: bool = False
    """Told to stop while a step ran with it; it ends when that step does."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def max_len(self) -> int:
        """Positions that it can come to use."""
        return self.num_prompt_tokens + self.max_tokens

    def move_to(self, phase: Phase) -> None:
        """Change phase; anything that the table does not list is our bug."""
        assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase
