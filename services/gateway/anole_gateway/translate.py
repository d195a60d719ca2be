"""Between the public API and the messages on the bus. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from anole_gateway.errors import (
    AdapterFailed,
    ApiError,
    ContextLengthExceeded,
    InternalFailure,
    InvalidRequest,
    ModelNotFound,
    TooManyRequests,
    Unavailable,
    WorkerLost,
)
from anole_gateway.tokenizer import ChatMessage
from anole_gateway.wire import GenerationRequest, Message
from anole_shared.ids import RequestId
from anole_shared.messages import (
    FailureCode,
    FinishReason,
    RequestFailed,
    RequestSubmitted,
    Sampling,
    Stopping,
)

_ERRORS: Mapping[FailureCode, type[ApiError]] = {
    FailureCode.QUEUE_FULL: TooManyRequests,
    FailureCode.NO_WORKER: Unavailable,
    FailureCode.TOO_LONG: ContextLengthExceeded,
    FailureCode.UNKNOWN_ADAPTER: ModelNotFound,
    FailureCode.ADAPTER_FAILED: AdapterFailed,
    FailureCode.WORKER_LOST: WorkerLost,
    FailureCode.SQUASHED: WorkerLost,
    FailureCode.INTERNAL: InternalFailure,
}

_FINISH_REASONS: Mapping[FinishReason, str] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


_NUM_SEEDS = 2**63

_NEUTRAL = Sampling()


def turns_of(messages: Sequence[Message]) -> list[ChatMessage]:
    """The conversation as templates read it; they know the older word for developer only."""
    return [
        ChatMessage(role=message.role.replace("developer", "system"), content=message.content)
        for message in messages
    ]


def sampling_of(
    request: GenerationRequest, *, drawn_seed: int, vocab_size: int, grammar: str | None
) -> Sampling:
    """How to draw tokens for this request.

    Args:
        request: What the client wants.
        drawn_seed: The seed where the client names none.
        vocab_size: More than so many likeliest tokens are all.
        grammar: The request's constraint, made ready.
    """
    return Sampling(
        temperature=_or(request.temperature, _NEUTRAL.temperature),
        top_p=_or(request.top_p, _NEUTRAL.top_p),
        top_k=min(max(0, request.top_k or 0), vocab_size),
        min_p=_or(request.min_p, _NEUTRAL.min_p),
        repetition_penalty=_or(request.repetition_penalty, _NEUTRAL.repetition_penalty),
        presence_penalty=_or(request.presence_penalty, _NEUTRAL.presence_penalty),
        frequency_penalty=_or(request.frequency_penalty, _NEUTRAL.frequency_penalty),
        logit_bias=tuple(sorted(request.logit_bias.items())),
        logprobs=request.num_logprobs,
        grammar=grammar,
        seed=drawn_seed if request.seed is None else request.seed % _NUM_SEEDS,
    )


def _or(value: float | None, neutral: float) -> float:
    return neutral if value is None else value


def stopping_of(request: GenerationRequest, *, max_tokens: int) -> Stopping:
    """When the answer ends, besides the stop strings.

    Raises:
        InvalidRequest: it would have to be longer than max_tokens.
    """
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise InvalidRequest(
            f"min_tokens: {min_tokens} is more than the {max_tokens} tokens that the answer may "
            "have; raise max_tokens",
            param="min_tokens",
        )
    return Stopping(
        ignore_eos=bool(request.ignore_eos),
        stop_token_ids=tuple(request.stop_token_ids),
        min_tokens=min_tokens,
    )


def fan_out(order: RequestSubmitted, num_choices: int) -> list[RequestSubmitted]:
    """An order for each of the answers that a request asks for; their seeds follow each other."""
    if num_choices == 1:
        return [order]
    return [
        replace(
            order,
            request_id=RequestId(f"{order.request_id}-{index}"),
            sampling=replace(order.sampling, seed=(order.sampling.seed + index) % _NUM_SEEDS),
        )
        for index in range(num_choices)
    ]


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
