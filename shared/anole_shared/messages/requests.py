"""What travels about one request: gateway to scheduler to worker, and the tokens back."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId

TokenIds = tuple[int, ...]


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    """The model ended its answer (end-of-sequence token)."""
    LENGTH = "length"
    """max_tokens were generated."""
    ABORT = "abort"
    """The client went away or found a stop string."""
    ERROR = "error"
    """The worker could not run it; a RequestFailed says why."""


class FailureCode(StrEnum):
    """Why a request was refused or given up; the gateway maps each to an HTTP status."""

    QUEUE_FULL = "queue_full"
    NO_WORKER = "no_worker"
    TOO_LONG = "context_length_exceeded"
    UNKNOWN_ADAPTER = "model_not_found"
    ADAPTER_FAILED = "adapter_failed"
    WORKER_LOST = "worker_lost"
    SQUASHED = "squashed"
    """The scheduler stopped it so that another can run: send it again."""
    INTERNAL = "internal_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy.

    The draw for the token at absolute position p depends on (seed, p), its logits and the tokens
    before it only, so a sequence that moves to another worker, or shares its batch with others,
    goes on the same way. Penalties count the tokens generated so far (repetition_penalty those of
    the prompt as well), are applied to the logits first, then logit_bias, then temperature, and
    top_k, top_p and min_p narrow what is left.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens; 0 is all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Only tokens at least so likely as this fraction of the likeliest's probability."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[tuple[tuple[int, float], ...], Field(max_length=1024)] = ()
    """Token ids, each once, and what is added to their logits."""
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    """How many alternatives to tell with each token's log probability; None tells nothing."""
    grammar: Annotated[str | None, Field(max_length=256 * 1024)] = None
    """An llguidance grammar that the output of all attempts together must match."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When a sequence ends, besides max_tokens; stop strings are the gateway's to find.

    A sequence whose grammar is complete ends whatever this says.
    """

    ignore_eos: bool = False
    stop_token_ids: Annotated[tuple[int, ...], Field(max_length=128)] = ()
    """End the sequence as an end-of-sequence token does."""
    min_tokens: Annotated[int, Field(ge=0)] = 0
    """Until so many are generated, those of earlier attempts included, no token that would end the
    sequence is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprobs:
    """What the model itself thought of one token: before penalties, bias and temperature.

    All numbers are finite: JSON has no infinity.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log probabilities, likeliest first; as many as were asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSubmitted:
    """gateway -> scheduler: please run this. Acknowledged when it has ended."""

    request_id: RequestId
    attempt: Annotated[int, Field(ge=0)]
    """Counts resubmissions; output of an older attempt is ignored."""
    gateway_id: GatewayId
    adapter_id: AdapterId | None
    """None runs the base model alone."""
    prompt_token_ids: TokenIds
    max_tokens: Annotated[int, Field(ge=1)]
    """Of this attempt alone."""
    sampling: Sampling
    stopping: Stopping = field(default_factory=Stopping)
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    """As Sampling.logprobs, for the prompt's tokens; with it nothing of the prompt is reused."""
    num_resumed_tokens: Annotated[int, Field(ge=0)] = 0
    """How many of prompt_token_ids, at their end, earlier attempts generated: penalties, grammar
    and min_tokens count them as output."""
    type: Literal["request.submitted"] = "request.submitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAborted:
    """gateway -> scheduler: nobody waits for this any more."""

    request_id: RequestId
    reason: str
    type: Literal["request.aborted"] = "request.aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceAdmitted:
    """scheduler -> worker: run this as soon as its adapter and its KV blocks are there."""

    request_id: RequestId
    attempt: int
    gateway_id: GatewayId
    adapter_id: AdapterId | None
    prompt_token_ids: TokenIds
    max_tokens: Annotated[int, Field(ge=1)]
    """Of this attempt alone."""
    sampling: Sampling
    stopping: Stopping = field(default_factory=Stopping)
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    """As Sampling.logprobs, for the prompt's tokens; with it nothing of the prompt is reused."""
    num_resumed_tokens: Annotated[int, Field(ge=0)] = 0
    """How many of prompt_token_ids, at their end, earlier attempts generated: penalties, grammar
    and min_tokens count them as output."""
    type: Literal["sequence.admitted"] = "sequence.admitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceAborted:
    """scheduler -> worker: stop this one and free what it holds."""

    request_id: RequestId
    type: Literal["sequence.aborted"] = "sequence.aborted"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """The new tokens of one sequence in one step; finish_reason on its last."""

    request_id: RequestId
    attempt: int
    position: Annotated[int, Field(ge=0)]
    """Tokens of this attempt before these. Delivery is unconfirmed: a gap shows a lost message."""
    token_ids: TokenIds
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each of token_ids where they were asked for."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """With the first output, where asked for: of the prompt's tokens from the second on."""
    num_cached_tokens: int = 0
    """With the first or the last output: prompt tokens whose keys and values were reused, not
    computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensGenerated:
    """worker -> gateway: all that one step made for that gateway's clients."""

    worker_id: WorkerId
    outputs: tuple[SequenceOutput, ...]
    type: Literal["tokens.generated"] = "tokens.generated"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceFinished:
    """worker -> scheduler: this one holds nothing here any more."""

    worker_id: WorkerId
    request_id: RequestId
    attempt: int
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_output_tokens: int
    type: Literal["sequence.finished"] = "sequence.finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailed:
    """scheduler or worker -> gateway: this request gets no (further) answer, and why."""

    request_id: RequestId
    attempt: int
    code: FailureCode
    message: str
    retry_after_s: float | None = None
    type: Literal["request.failed"] = "request.failed"
