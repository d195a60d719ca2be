"""One token stream being generated, and the phases it goes through."""

from dataclasses import dataclass, field
from enum import Enum, auto

from anole_shared.ids import GatewayId, RequestId
from anole_shared.units import div_ceil
from anole_worker.core.adapter import Adapter
from anole_worker.core.prefix import Digest, extend, root
from anole_worker.core.step import History, Sampling, TokenLogprobs


class Phase(Enum):
    """What a sequence is doing on this worker."""

    WAITING = auto()
    """For its adapter, its blocks or a place in the batch."""
    PREFILL = auto()
    """Its tokens are being run, chunk by chunk."""
    DECODE = auto()
    """It gets one token a step."""
    FINISHED = auto()
    """It holds nothing any more."""


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.PREFILL, Phase.FINISHED}),
    Phase.PREFILL: frozenset({Phase.DECODE, Phase.WAITING, Phase.FINISHED}),
    Phase.DECODE: frozenset({Phase.WAITING, Phase.FINISHED}),
    Phase.FINISHED: frozenset(),
}
"""Every legal change of phase; what runs waits again where older ones need its memory."""


class Ending(Enum):
    """Why a sequence ended."""

    STOP = auto()
    LENGTH = auto()
    ABORT = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a sequence ends, besides its number of tokens."""

    ignore_eos: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    """Until so many are generated, nothing that would end the sequence is drawn."""


@dataclass(slots=True, kw_only=True)
class Sequence:
    """A request's token stream with all it holds. Owned and changed by the engine core only."""

    request_id: RequestId
    attempt: int
    gateway_id: GatewayId
    adapter: Adapter | None
    token_ids: list[int]
    """What was given, and behind it what was generated."""
    num_given_tokens: int
    num_prompt_tokens: int
    """Fewer than what was given where an earlier attempt generated some of it."""
    max_tokens: int
    """To be generated here."""
    sampling: Sampling
    stopping: Stopping
    prompt_logprobs: int | None
    """How many alternatives to tell with each prompt token's log probability; None: nothing."""
    arrived_s: float
    order: int = 0
    """Its place among all that this worker was given."""
    phase: Phase = Phase.WAITING
    num_computed_tokens: int = 0
    """Tokens whose keys and values are in its blocks."""
    num_cached_tokens: int = 0
    """Of those, the ones of the first run that others had computed."""
    block_table: list[int] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)
    """Of the empty sequence, and of its full blocks as far as they were asked for."""
    scored: list[TokenLogprobs] = field(default_factory=list)
    """The prompt's log probabilities, until they have been told."""
    num_preemptions: int = 0
    is_aborted: bool = False
    """Told to stop while a step ran with it; it ends when that step does."""

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated here."""
        return len(self.token_ids) - self.num_given_tokens

    @property
    def max_len(self) -> int:
        """Positions that it can come to use: the last token drawn is never run."""
        return self.num_given_tokens + self.max_tokens

    @property
    def is_scoring(self) -> bool:
        """Whether every prompt token has to be run for its log probability."""
        return self.prompt_logprobs is not None and self.num_output_tokens == 0

    @property
    def history(self) -> History:
        """All tokens up to now."""
        return History(token_ids=tuple(self.token_ids), num_prompt_tokens=self.num_prompt_tokens)

    def num_blocks(self, block_size: int) -> int:
        """Blocks that its tokens take."""
        return div_ceil(len(self.token_ids), block_size)

    def digest(self, index: int, block_size: int) -> Digest:
        """The digest of a block that its tokens fill."""
        if not self.digests:
            self.digests.append(root(self.adapter))
        while len(self.digests) <= index + 1:
            begin = (len(self.digests) - 1) * block_size
            tokens = self.token_ids[begin : begin + block_size]
            assert len(tokens) == block_size, f"block {index} is not full"
            self.digests.append(extend(self.digests[-1], tokens))
        return self.digests[index + 1]

    def move_to(self, phase: Phase) -> None:
        """Change phase; anything that the table does not list is our bug."""
        assert phase in TRANSITIONS[self.phase], f"{self.phase} -> {phase}"
        self.phase = phase
