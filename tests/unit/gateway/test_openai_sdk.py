"""The official SDK as the client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import FailureCode, RequestSubmitted
from tests.unit.gateway.backend import Backend, Script, failing, saying
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


async def test_models(model_dir: Path) -> None:
    async with serving_sdk(model_dir, saying([40])) as client:
        assert [model.id async for model in client.models.list()] == ["tiny", "poet"]
        assert (await client.models.retrieve("poet")).owned_by == "anole"


async def test_errors_are_the_sdks_own(model_dir: Path) -> None:
    async with serving_sdk(model_dir, failing(FailureCode.QUEUE_FULL, 2)) as client:
        create = client.chat.completions.create
        with pytest.raises(openai.NotFoundError, match="Did you mean 'poet'") as missing:
            await create(model="poets", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="n is not supported") as bad:
            await create(model="poet", messages=MESSAGES, n=3)
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
