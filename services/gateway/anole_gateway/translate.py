"""Between the public API and the messages on the bus. Pure."""

from collections.abc import Mapping

from anole_gateway.errors import (
    AdapterFailed,
    ApiError,
    ContextLengthExceeded,
    InternalFailure,
    ModelNotFound,
    TooManyRequests,
    Unavailable,
    WorkerLost,
)
from anole_gateway.wire import GenerationRequest
from anole_shared.messages import FailureCode, FinishReason, RequestFailed, Sampling

_ERRORS: Mapping[FailureCode, type[ApiError]] = {
    FailureCode.QUEUE_FULL: TooManyRequests,
    FailureCode.NO_WORKER: Unavailable,
    FailureCode.TOO_LONG: ContextLengthExceeded,
    FailureCode.UNKNOWN_ADAPTER: ModelNotFound,
    FailureCode.ADAPTER_FAILED: AdapterFailed,
    FailureCode.WORKER_LOST: WorkerLost,
    FailureCode.INTERNAL: InternalFailure,
}

_FINISH_REASONS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


def sampling_of(request: GenerationRequest, *, drawn_seed: int) -> Sampling:
    """How to draw tokens for this request; drawn_seed serves where the client names none."""
    seed = drawn_seed if request.seed is None else request.seed & (2**63 - 1)
    return Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=seed,
    )


def error_of(failure: RequestFailed, *, retry_after_s: float) -> ApiError:
    """The client's answer to a failure; retry_after_s serves where the failure names none."""
    kind = _ERRORS[failure.code]
    wait_s = failure.retry_after_s or retry_after_s if kind.retryable else None
    return kind(failure.message, retry_after_s=wait_s)


def finish_reason_of(reason: FinishReason) -> str | None:
    """OpenAI's word for an end that is an answer's end; None for an end that is a failure."""
    return _FINISH_REASONS.get(reason)


def limit_tokens(
    wanted: int | None, *, num_prompt_tokens: int, default: int, context_length: int
) -> int:
    """How many tokens the answer may have.

    Raises:
        ContextLengthExceeded: prompt and answer do not fit; says the numbers.
    """
    room = context_length - num_prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt_tokens} tokens; the model's context holds "
            f"{context_length}, and the answer needs at least one of them"
        )
    if wanted is None:
        return min(default, room)
    if wanted > room:
        raise ContextLengthExceeded(
            f"the prompt has {num_prompt_tokens} tokens and the answer may have {wanted}, "
            f"together {num_prompt_tokens + wanted}; the model's context holds {context_length}. "
            f"Ask for at most {room} or shorten the prompt.",
            param="max_tokens",
        )
    return wanted
