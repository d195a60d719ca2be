"""The official SDK as the client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from llguidance import LLMatcher, LLTokenizer
from openai import AsyncOpenAI
from pydantic import BaseModel

from anole_gateway import tokenizer as tokenizers
from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import FailureCode, RequestSubmitted
from tests.unit.gateway.backend import Backend, Script, failing, saying, thought
from tests.unit.gateway.harness import Gateway, adapter, serving

MESSAGES: Any = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]


@asynccontextmanager
async def client_of(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    url = f"{gateway.url}/v1"
    async with AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


@asynccontextmanager
async def serving_sdk(
    model_dir: Path, script: Script, **settings: Any
) -> AsyncIterator[AsyncOpenAI]:
    async with serving(model_dir, script, **settings) as gateway, client_of(gateway) as client:
        await gateway.add_adapter(adapter("poet"))
        yield client


async def test_chat_and_text_completions(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello 日本")
    async with serving_sdk(model_dir, saying(ids)) as client:
        chat = await client.chat.completions.create(model="poet", messages=MESSAGES)
        text = await client.completions.create(model="tiny", prompt="hello", max_tokens=50)
    assert chat.choices[0].message.content == "hello 日本"
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage is not None
    assert chat.usage.completion_tokens == len(ids)
    assert chat._request_id
    assert text.choices[0].text == "hello 日本"
    assert (chat.id[:9], text.id[:5]) == ("chatcmpl-", "cmpl-")


async def test_streams(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello 日本")
    async with serving_sdk(model_dir, saying(ids)) as client:
        chunks = [
            chunk
            async for chunk in await client.chat.completions.create(
                model="poet",
                messages=MESSAGES,
                stream=True,
                stream_options={"include_usage": True},
                max_completion_tokens=50,
            )
        ]
        texts = [
            chunk.choices[0].text
            async for chunk in await client.completions.create(
                model="tiny", prompt=[65, 66], stream=True
            )
        ]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "hello 日本"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(ids)
    assert "".join(texts) == "hello 日本"


async def test_log_probabilities(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello 日本")
    asked: Any = {"model": "poet", "messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    async with serving_sdk(model_dir, saying(ids)) as client:
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True)
        chunks = [chunk async for chunk in stream]
        old = await client.completions.create(
            model="tiny", prompt="hello", max_tokens=50, logprobs=2, echo=True
        )
    told = whole.choices[0].logprobs
    assert told is not None
    assert told.content is not None
    assert [token.logprob for token in told.content] == [
        thought(token_id, 0).logprob for token_id in ids
    ]
    assert b"".join(bytes(token.bytes or []) for token in told.content).decode() == "hello 日本"
    for token in told.content:
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob > token.top_logprobs[1].logprob
    streamed = [chunk.choices[0].logprobs for chunk in chunks]
    content = [token for some in streamed if some for token in some.content or []]
    assert content == told.content
    assert old.choices[0].logprobs is not None
    assert old.choices[0].logprobs.tokens is not None
    assert old.choices[0].text == "hellohello 日本"


async def test_several_answers(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello")
    async with serving_sdk(model_dir, saying(ids)) as client:
        whole = await client.chat.completions.create(model="poet", messages=MESSAGES, n=3)
        texts = ["", "", ""]
        async for chunk in await client.chat.completions.create(
            model="poet", messages=MESSAGES, n=3, stream=True
        ):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert {choice.message.content for choice in whole.choices} == {"hello"}
    assert texts == ["hello"] * 3


class Step(BaseModel):
    """As in OpenAI's own examples."""

    explanation: str
    output: float


class Reasoning(BaseModel):
    steps: list[Step]
    final_answer: str | None


async def test_answers_of_a_pydantic_model(plain_model_dir: Path) -> None:
    answer = Reasoning(steps=[Step(explanation="two", output=2.5)], final_answer=None)
    tokenizer = tokenizers.load(plain_model_dir)
    ids = await tokenizer.encode(answer.model_dump_json())
    async with serving(plain_model_dir, saying(ids)) as gateway, client_of(gateway) as client:
        parsed = await client.chat.completions.parse(
            model="tiny", messages=MESSAGES, response_format=Reasoning
        )
        await client.chat.completions.create(
            model="tiny", messages=MESSAGES, response_format={"type": "json_object"}
        )
        with pytest.raises(openai.BadRequestError, match="Invalid type: strang") as bad:
            await client.chat.completions.create(
                model="tiny",
                messages=MESSAGES,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "strang"}},
                },
            )
        with pytest.raises(openai.BadRequestError, match="unclosed group") as worse:
            await client.completions.create(
                model="tiny", prompt="a", extra_body={"guided_regex": "("}
            )
        grammars = [order.sampling.grammar for order in gateway.backend.submitted]
    assert parsed.choices[0].message.parsed == answer
    assert (bad.value.param, worse.value.param) == ("response_format", "guided_regex")
    vocabulary = LLTokenizer((plain_model_dir / "tokenizer.json").read_text())
    matchers = [LLMatcher(vocabulary, grammar or "") for grammar in grammars]
    said = vocabulary.greedy_tokenize(answer.model_dump_json())
    assert [matcher.try_consume_tokens(said) for matcher in matchers] == [len(said)] * 2
    assert all(matcher.is_accepting() for matcher in matchers)


async def test_models(model_dir: Path) -> None:
    async with serving_sdk(model_dir, saying([40])) as client:
        assert [model.id async for model in client.models.list()] == ["tiny", "poet"]
        assert (await client.models.retrieve("poet")).owned_by == "anole"


async def test_errors_are_the_sdks_own(model_dir: Path) -> None:
    async with serving_sdk(model_dir, failing(FailureCode.QUEUE_FULL, 2)) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError, match="Did you mean 'poet'") as missing:
            await create(model="poets", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="n: should be less than") as bad:
            await create(model="poet", messages=MESSAGES, n=17)
        with pytest.raises(openai.RateLimitError) as full:
            await create(model="poet", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert bad.value.param == "n"
    assert full.value.response.headers["retry-after"] == "2"


async def test_an_error_within_a_stream_is_raised_while_reading(model_dir: Path) -> None:
    async def break_down(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40])
        await backend.fail(order, FailureCode.INTERNAL)

    async with serving_sdk(model_dir, break_down) as client:
        stream = await client.completions.create(model="tiny", prompt="hello", stream=True)
        assert (await anext(stream)).choices[0].text
        with pytest.raises(openai.APIError, match="it did not work"):
            await anext(stream)


async def test_leaving_a_stream_early_ends_the_work(model_dir: Path) -> None:
    async def begin(backend: Backend, order: RequestSubmitted) -> None:
        await backend.send(order, [40])

    async with serving(model_dir, begin) as gateway, client_of(gateway) as client:
        stream = await client.completions.create(model="tiny", prompt="hello", stream=True)
        await anext(stream)
        await stream.close()
        abort = await gateway.backend.next_abort()
    assert abort.request_id == gateway.backend.submitted[0].request_id
