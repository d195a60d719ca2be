"""Streams: what is sent, when, and how they end."""

import asyncio
import random
import socket
from pathlib import Path

import orjson
import pytest

from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import FailureCode, FinishReason, RequestSubmitted
from tests.unit.gateway.backend import Backend, saying
from tests.unit.gateway.conftest import LONG_TOKEN
from tests.unit.gateway.harness import CHAT, TEXT, chat, serving, text


async def test_a_chat_streams_role_text_reason_and_done(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    ids = await tokenizer.encode("hello 日本 world")
    async with serving(model_dir, saying(ids)) as gateway:
        answer = await gateway.post(CHAT, chat(stream=True))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.events[-1] == "[DONE]"
    choices = [chunk["choices"][0] for chunk in answer.chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "hello 日本 world"
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert len({chunk["id"] for chunk in answer.chunks}) == 1
    assert not any("usage" in chunk for chunk in answer.chunks)


async def test_a_text_streams_the_same_way(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello 日本 world")
    async with serving(model_dir, saying(ids)) as gateway:
        answer = await gateway.post(TEXT, text(stream=True, max_tokens=40))
    assert answer.streamed_text == "hello 日本 world"
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert {chunk["object"] for chunk in answer.chunks} == {"text_completion"}


async def test_no_chunk_holds_half_a_character(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("日本語のテキスト")
    async with serving(model_dir, saying(ids)) as gateway:
        answer = await gateway.post(CHAT, chat(stream=True))
    assert "\ufffd" not in answer.streamed_text
    assert answer.streamed_text == "日本語のテキスト"


async def test_usage_comes_last_if_asked_for(model_dir: Path) -> None:
    async with serving(model_dir, saying([40, 41, 42])) as gateway:
        options = {"include_usage": True}
        answer = await gateway.post(CHAT, chat(stream=True, stream_options=options))
        num_prompt_tokens = len(gateway.backend.submitted[0].prompt_token_ids)
    *others, last = answer.chunks
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": 3,
        "total_tokens": num_prompt_tokens + 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_usage_comes_with_every_chunk_if_asked_for(model_dir: Path) -> None:
    async with serving(model_dir, saying([40, 41, 42])) as gateway:
        options = {"include_usage": True, "continuous_usage_stats": True}
        answer = await gateway.post(TEXT, text(stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in answer.chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    assert 0 not in counts


async def test_streams_tell_the_log_probabilities_that_whole_answers_tell(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    """However tokens, characters, stop strings and messages overlap."""
    rng = random.Random(0)  # noqa: S311

    async def script(backend: Backend, order: RequestSubmitted) -> None:
        left = list(said[: order.max_tokens])
        while left:
            now, left = left[: (size := rng.randint(1, 4))], left[size:]
            await backend.send(order, now, None if left else FinishReason.LENGTH)
            await asyncio.sleep(0)

    async with serving(model_dir, script) as gateway:
        for _ in range(40):
            words = [rng.choice(["ab", "日本", "é", "x<", "<END>", "👩", " "]) for _ in range(8)]
            said = await tokenizer.encode("".join(words))
            fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": rng.randint(1, 60)}
            stop = rng.choice([[], ["<END>"], ["本é", "<x"]])
            body = chat(stop=stop, min_tokens=rng.choice([0, 1]), **fields)
            whole = (await gateway.post(CHAT, body)).json["choices"][0]
            streamed = await gateway.post(CHAT, body | {"stream": True})
            told = [chunk["choices"][0]["logprobs"] for chunk in streamed.chunks]
            content = [token for some in told if some is not None for token in some["content"]]
            assert content == whole["logprobs"]["content"]
            assert streamed.streamed_text == whole["message"]["content"]


async def test_tokens_of_one_message_come_in_one_chunk(model_dir: Path) -> None:
    async with serving(model_dir) as gateway, asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(gateway.post(TEXT, text(stream=True)))
        order = await gateway.backend.next_order()
        await gateway.backend.send(order, [40, 41, 42, 43], FinishReason.STOP)
        answer = await asking
    assert len(answer.chunks) == 2


async def test_while_nothing_comes_comments_keep_the_connection_busy(model_dir: Path) -> None:
    async with serving(model_dir, keep_alive_s=0.01) as gateway:
        body = orjson.dumps(chat(stream=True))
        async with gateway.session.post(gateway.url + CHAT, data=body) as response:
            assert response.status == 200
            assert await response.content.readline() == b": keep-alive\n"
            assert await response.content.readline() == b"\n"
            assert await response.content.readline() == b": keep-alive\n"
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40], FinishReason.STOP)
            rest = await response.read()
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_an_error_within_a_stream_ends_it_unfinished(model_dir: Path) -> None:
    async with serving(model_dir, keep_alive_s=0.01) as gateway:
        body = orjson.dumps(chat(stream=True))
        async with gateway.session.post(gateway.url + CHAT, data=body) as response:
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40])
            while not (await response.content.readline()).startswith(b"data: "):
                pass
            await gateway.backend.fail(order, FailureCode.INTERNAL)
            rest = await response.read()
        metrics = await gateway.get("/metrics")
    events = rest.decode().strip().split("\n\n")
    assert "[DONE]" not in rest.decode()
    assert orjson.loads(events[-1].removeprefix("data: ")) == {
        "error": {
            "message": "it did not work",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }
    }
    assert b'route="/v1/chat/completions",status="500"' in metrics.body


@pytest.mark.parametrize("stream", [False, True])
async def test_a_completion_that_takes_too_long_is_504_and_aborted(
    model_dir: Path, *, stream: bool
) -> None:
    async with serving(model_dir, request_timeout_s=0.05) as gateway:
        answer = await gateway.post(CHAT, chat(stream=stream))
        abort = await gateway.backend.next_abort()
    assert answer.status == 504
    assert answer.error["type"] == "timeout_error"
    assert abort.reason == "timeout"
    assert len(gateway.backend.aborted) == 1


async def test_a_stream_that_takes_too_long_ends_with_an_error(model_dir: Path) -> None:
    async with serving(model_dir, request_timeout_s=0.5, keep_alive_s=0.01) as gateway:
        answer = await gateway.post(CHAT, chat(stream=True))
        abort = await gateway.backend.next_abort()
    assert answer.status == 200
    (event,) = answer.events
    assert orjson.loads(event)["error"]["code"] == "timeout"
    assert abort.reason == "timeout"


async def test_a_client_that_reads_nothing_holds_no_other_up(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    """Its tokens wait for it; another's go out meanwhile, and the time-out ends it."""
    long = await tokenizer.encode(LONG_TOKEN)
    assert len(long) == 1
    async with serving(model_dir, request_timeout_s=1.0) as gateway:
        connection = socket.create_connection(("127.0.0.1", gateway.service.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader, writer = await asyncio.open_connection(sock=connection, limit=64)
        body = orjson.dumps(text(stream=True, max_tokens=200))
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        slow = await gateway.backend.next_order()
        for _ in range(199):
            await gateway.backend.send(slow, long * 20)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(gateway.post(TEXT, text()))
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40], FinishReason.STOP)
            assert (await asking).status == 200
        abort = await gateway.backend.next_abort()
        assert (abort.request_id, abort.reason) == (slow.request_id, "timeout")
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
        writer.close()
