"""What travels about one request: gateway to scheduler to worker, and the tokens back."""

from dataclasses import dataclass
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
    INTERNAL = "internal_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy.

    The draw for the token at absolute position p depends on (seed, p) and its logits only, so a
    sequence that moves to another worker, or shares its batch with others, goes on the same way.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


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
    sampling: Sampling
    ignore_eos: bool = False
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
    sampling: Sampling
    ignore_eos: bool = False
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
