"""Between the API's words and the bus's."""

import pytest

from anole_gateway import translate
from anole_gateway.errors import ContextLengthExceeded, InvalidRequest
from anole_gateway.translate import error_of, fan_out, finish_reason_of, limit_tokens, stopping_of
from anole_gateway.wire import ChatRequest, CompletionRequest, GenerationRequest
from anole_shared.ids import GatewayId, RequestId
from anole_shared.messages import (
    FailureCode,
    FinishReason,
    RequestFailed,
    RequestSubmitted,
    Sampling,
    Stopping,
)
from tests.unit.gateway.harness import chat, text


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


def sampling_of(request: GenerationRequest, grammar: str | None = None) -> Sampling:
    return translate.sampling_of(request, drawn_seed=7, vocab_size=320, grammar=grammar)


def test_sampling_has_openais_defaults() -> None:
    for request in (CompletionRequest(**text()), ChatRequest(**chat())):
        assert sampling_of(request) == Sampling(temperature=1.0, top_p=1.0, seed=7)


def test_sampling_is_the_clients_where_it_says_so() -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.5,
        "logit_bias": {"9": -100, "5": 1.5},
        "seed": 0,
    }
    expected = Sampling(
        temperature=0,
        top_p=0.5,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.2,
        presence_penalty=-0.5,
        frequency_penalty=0.5,
        logit_bias=((5, 1.5), (9, -100.0)),
        grammar="start: x",
        seed=0,
    )
    assert sampling_of(CompletionRequest(**text(**fields)), "start: x") == expected
    assert sampling_of(ChatRequest(**chat(**fields)), "start: x") == expected


@pytest.mark.parametrize(("top_k", "expected"), [(None, 0), (-1, 0), (0, 0), (5, 5), (10**30, 320)])
def test_top_k_is_off_or_at_most_the_vocabulary(top_k: int | None, expected: int) -> None:
    assert sampling_of(CompletionRequest(**text(top_k=top_k))).top_k == expected


def test_log_probabilities_are_asked_for_in_each_endpoints_way() -> None:
    assert sampling_of(CompletionRequest(**text(logprobs=0))).logprobs == 0
    assert sampling_of(CompletionRequest(**text(logprobs=5))).logprobs == 5
    assert sampling_of(ChatRequest(**chat(logprobs=True))).logprobs == 0
    assert sampling_of(ChatRequest(**chat(logprobs=True, top_logprobs=20))).logprobs == 20
    assert sampling_of(ChatRequest(**chat(logprobs=False, top_logprobs=0))).logprobs is None


def test_negative_seeds_fit_the_bus() -> None:
    seeds = [sampling_of(CompletionRequest(**text(seed=seed))).seed for seed in (-1, -2, -(2**63))]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_answer_ends_as_the_client_says() -> None:
    request = CompletionRequest(**text(ignore_eos=True, stop_token_ids=[3, 5], min_tokens=8))
    assert stopping_of(request, max_tokens=8) == Stopping(
        ignore_eos=True, stop_token_ids=(3, 5), min_tokens=8
    )
    assert stopping_of(CompletionRequest(**text()), max_tokens=1) == Stopping()
    with pytest.raises(InvalidRequest, match="min_tokens: 8 is more than the 7 tokens"):
        stopping_of(request, max_tokens=7)


def test_every_choice_has_an_id_and_a_seed_of_its_own() -> None:
    order = RequestSubmitted(
        request_id=RequestId("a"),
        attempt=0,
        gateway_id=GatewayId("g"),
        adapter_id=None,
        prompt_token_ids=(1,),
        max_tokens=4,
        sampling=Sampling(temperature=0.5, seed=2**63 - 2),
    )
    assert fan_out(order, 1) == [order]
    orders = fan_out(order, 3)
    assert [one.request_id for one in orders] == ["a-0", "a-1", "a-2"]
    assert [one.sampling.seed for one in orders] == [2**63 - 2, 2**63 - 1, 0]
    assert {one.sampling.temperature for one in orders} == {0.5}


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
