"""What one forward pass is to run, and what it brought: what core and runtime tell each other."""

from dataclasses import dataclass, field

from anole_shared.ids import RequestId
from anole_worker.core.adapter import Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is drawn from a row's logits.

    temperature 0 means the likeliest token; then top_k, top_p, min_p and seed have no effect.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    """Only so many of the likeliest tokens; 0 is all."""
    min_p: float = 0.0
    """Only tokens at least so likely as this fraction of the likeliest's probability."""
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits."""
    logprobs: int | None = None
    """How many alternatives to tell with the token's log probability; None tells nothing."""
    grammar: str | None = None
    """An llguidance grammar that the output must match."""
    seed: int = 0

    @property
    def needs_history(self) -> bool:
        """Whether the draw depends on the tokens before it."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or self.grammar is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The tokens before the one to be drawn."""

    token_ids: tuple[int, ...]
    """The prompt, and behind it what was generated."""
    num_prompt_tokens: int

    @property
    def output_token_ids(self) -> tuple[int, ...]:
        """What was generated so far."""
        return self.token_ids[self.num_prompt_tokens :]


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Asks for the log probabilities of prompt tokens."""

    token_ids: tuple[int, ...]
    """What follows each of the row's tokens in the prompt; one less at the prompt's end."""
    num_top: int
    """How many alternatives to tell with each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sequence's part of a step.

    `token_ids` are the new tokens to run, a chunk of the prompt or the one last token, and `start`
    is the position of the first of them: the keys and values of all earlier positions are in the
    pool already. `block_table` names the sequence's blocks in order and covers
    start + len(token_ids) positions. No `adapter` means the base model; no `sampling` means a
    chunk that is not the prompt's last, after which no token is drawn.
    """

    request_id: RequestId
    adapter: Adapter | None
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sampling: Sampling | None
    history: History | None = None
    """With a sampling that needs it."""
    banned_token_ids: tuple[int, ...] = ()
    """Not to be drawn now: too early to end."""
    score: Score | None = None

    @property
    def adapter_order(self) -> tuple[bool, str, str]:
        """Base rows first, the rows of one content of an adapter together."""
        if self.adapter is None:
            return (False, "", "")
        return (True, self.adapter.adapter_id, self.adapter.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One forward pass: base rows come first and the rows of one adapter are contiguous."""

    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What the model itself thought of one token: before penalties, bias and temperature."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log probabilities, likeliest first; as many as were asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What a step brought to one row."""

    token_id: int | None = None
    """None for a row that does not sample."""
    logprobs: TokenLogprobs | None = None
    """Of the token, where asked for."""
    scored: tuple[TokenLogprobs, ...] = field(default=())
    """Of the tokens that the row's score names."""
