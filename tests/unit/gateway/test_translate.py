"""Between the API's words and the bus's."""

import pytest

from anole_gateway.errors import ContextLengthExceeded
from anole_gateway.translate import error_of, finish_reason_of, limit_tokens, sampling_of
from anole_gateway.wire import CompletionRequest
from anole_shared.ids import RequestId
from anole_shared.messages import FailureCode, FinishReason, RequestFailed, Sampling
from tests.unit.gateway.harness import text


def failure(code: FailureCode, retry_after_s: float | None = None) -> RequestFailed:
    return RequestFailed(
        request_id=RequestId("a"),
        attempt=0,
        code=code,
        message="it did not work",
        retry_after_s=retry_after_s,
    )


@pytest.mark.parametrize(
    ("code", "status", "word"),
    [
        (FailureCode.QUEUE_FULL, 429, "rate_limit_exceeded"),
        (FailureCode.NO_WORKER, 503, "service_unavailable"),
        (FailureCode.TOO_LONG, 400, "context_length_exceeded"),
        (FailureCode.UNKNOWN_ADAPTER, 404, "model_not_found"),
        (FailureCode.ADAPTER_FAILED, 500, "adapter_failed"),
        (FailureCode.WORKER_LOST, 503, "worker_lost"),
        (FailureCode.INTERNAL, 500, "internal_error"),
    ],
)
def test_every_failure_has_its_answer(code: FailureCode, status: int, word: str) -> None:
    error = error_of(failure(code), retry_after_s=1)
    assert (error.status, error.code, error.message) == (status, word, "it did not work")


def test_no_failure_is_without_an_answer() -> None:
    assert all(error_of(failure(code), retry_after_s=1).message for code in FailureCode)


def test_what_can_be_tried_again_says_when() -> None:
    queue_full = FailureCode.QUEUE_FULL
    assert error_of(failure(queue_full, 2.2), retry_after_s=1).headers == {"Retry-After": "3"}
    assert error_of(failure(queue_full), retry_after_s=1).headers == {"Retry-After": "1"}
    assert error_of(failure(FailureCode.TOO_LONG, 2.2), retry_after_s=1).headers == {}


def test_sampling_has_openais_defaults() -> None:
    request = CompletionRequest(**text())
    assert sampling_of(request, drawn_seed=7) == Sampling(temperature=1.0, top_p=1.0, seed=7)


def test_sampling_is_the_clients_where_it_says_so() -> None:
    request = CompletionRequest(**text(temperature=0, top_p=0.5, seed=0))
    assert sampling_of(request, drawn_seed=7) == Sampling(temperature=0, top_p=0.5, seed=0)


def test_negative_seeds_fit_the_bus() -> None:
    seeds = [
        sampling_of(CompletionRequest(**text(seed=seed)), drawn_seed=7).seed
        for seed in (-1, -2, -(2**63))
    ]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_only_ends_of_answers_are_finish_reasons() -> None:
    reasons = {reason: finish_reason_of(reason) for reason in FinishReason}
    assert reasons == {"stop": "stop", "length": "length", "abort": None, "error": None}


def test_the_limit_is_what_was_asked_or_else_the_default_as_far_as_there_is_room() -> None:
    def limit(wanted: int | None, prompt: int) -> int:
        return limit_tokens(wanted, num_prompt_tokens=prompt, default=50, context_length=100)

    assert limit(70, 30) == 70
    assert limit(None, 30) == 50
    assert limit(None, 90) == 10
    assert limit(None, 99) == 1
    with pytest.raises(ContextLengthExceeded, match=r"30 tokens and the answer may have 71.*101"):
        limit(71, 30)
    with pytest.raises(ContextLengthExceeded, match=r"100 tokens.*context holds 100"):
        limit(None, 100)
