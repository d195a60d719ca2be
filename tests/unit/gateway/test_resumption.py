"""What an answer keeps when its worker is lost and another one goes on with it."""

from pathlib import Path
from typing import Any

import pytest

from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import FailureCode, FinishReason, RequestSubmitted
from tests.unit.gateway.backend import Backend, Script, thought
from tests.unit.gateway.harness import TEXT, Answer, serving, text


def losing_workers(ids: list[int], *, after: int) -> Script:
    """The first worker is lost behind so many tokens; the next one says the rest."""

    async def script(backend: Backend, order: RequestSubmitted) -> None:
        if order.attempt == 0:
            if after:
                await backend.send(order, ids[:after])
            await backend.fail(order, FailureCode.WORKER_LOST)
        else:
            rest = ids[order.num_resumed_tokens :]
            await backend.send(order, rest, FinishReason.STOP, num_cached_tokens=10_000)

    return script


def logprobs_of(answer: Answer, *, stream: bool) -> list[Any]:
    bodies = answer.chunks if stream else [answer.json]
    told = [body["choices"][0]["logprobs"] for body in bodies]
    return [one for some in told if some is not None for one in some["token_logprobs"]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4])
async def test_the_next_worker_is_told_what_was_generated_and_the_rest_stays(
    model_dir: Path, tokenizer: Tokenizer, after: int, *, stream: bool
) -> None:
    ids = await tokenizer.encode("hello 日 you")
    fields = {
        "prompt": "lazy dog",
        "max_tokens": 50,
        "min_tokens": 3,
        "stop_token_ids": [7],
        "ignore_eos": True,
        "frequency_penalty": 0.5,
        "logit_bias": {"5": 2},
        "logprobs": 1,
        "echo": True,
        "stream": stream,
    }
    async with serving(model_dir, losing_workers(ids, after=after)) as gateway:
        answer = await gateway.post(TEXT, text(**fields))
        first, second = gateway.backend.submitted
    assert (first.num_resumed_tokens, second.num_resumed_tokens) == (0, after)
    assert second.prompt_token_ids == (*first.prompt_token_ids, *ids[:after])
    assert second.max_tokens == 50 - after
    assert second.sampling == first.sampling
    assert second.stopping == first.stopping
    assert (first.prompt_logprobs, second.prompt_logprobs) == (1, None if after else 1)
    shown = answer.streamed_text if stream else answer.json["choices"][0]["text"]
    assert shown == "lazy dog" + "hello 日 you"
    prompt = first.prompt_token_ids
    expected = [None, *(thought(token_id, 0).logprob for token_id in (*prompt[1:], *ids))]
    assert logprobs_of(answer, stream=stream) == expected
    if not stream:
        cached = answer.json["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == len(prompt), "what was generated before is no part of the prompt"


async def test_tokens_that_come_twice_are_told_once(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello world")

    async def stammer(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, ids[:2])
        await backend.send(order, ids[:3], position=0)
        await backend.send(order, ids[1:], FinishReason.STOP, position=1)

    async with serving(model_dir, stammer) as gateway:
        answer = await gateway.post(TEXT, text(logprobs=0, max_tokens=50))
    assert logprobs_of(answer, stream=False) == [thought(token_id, 0).logprob for token_id in ids]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_whose_worker_is_lost_behind_it_needs_no_other(
    model_dir: Path, tokenizer: Tokenizer, *, stream: bool
) -> None:
    async with serving(model_dir, losing_workers([40], after=1)) as gateway:
        fields = {"echo": True, "max_tokens": 0, "logprobs": 0, "stream": stream}
        answer = await gateway.post(TEXT, text(**fields))
        assert len(gateway.backend.submitted) == 1
    assert len(logprobs_of(answer, stream=stream)) == len(await tokenizer.encode("hello"))
