"""Several answers to one request, answers behind their prompt, and what comes with their tokens."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import FailureCode, FinishReason, RequestSubmitted
from tests.unit.gateway.backend import Backend, saying, thought
from tests.unit.gateway.harness import CHAT, TEXT, Answer, chat, serving, text


def choice_texts(answer: Answer, *, stream: bool) -> dict[int, str]:
    if not stream:
        return {
            choice["index"]: choice["text"] if "text" in choice else choice["message"]["content"]
            for choice in answer.json["choices"]
        }
    texts: dict[int, str] = {}
    for chunk in answer.chunks:
        for choice in chunk["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return texts


def choice_reasons(answer: Answer, *, stream: bool) -> dict[int, str]:
    bodies = answer.chunks if stream else [answer.json]
    return {
        choice["index"]: choice["finish_reason"]
        for body in bodies
        for choice in body["choices"]
        if choice["finish_reason"]
    }


def index_of(order: RequestSubmitted) -> int:
    return int(order.request_id.rpartition("-")[2])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_n_answers_come_side_by_side(
    model_dir: Path, tokenizer: Tokenizer, path: str, *, stream: bool
) -> None:
    words = ["one", "two", "three"]
    ids = [await tokenizer.encode(word) for word in words]

    async def script(backend: Backend, order: RequestSubmitted) -> None:
        said = ids[index_of(order)]
        for token_id in said[:-1]:
            await backend.send(order, [token_id])
            await asyncio.sleep(0)
        reason = FinishReason.LENGTH if index_of(order) == 2 else FinishReason.STOP
        await backend.send(order, said[-1:], reason, num_cached_tokens=1)

    fields: dict[str, Any] = {"n": 3, "seed": 5, "stream": stream}
    if stream:
        fields["stream_options"] = {"include_usage": True}
    async with serving(model_dir, script) as gateway:
        body = chat(**fields) if path == CHAT else text(**fields)
        answer = await gateway.post(path, body)
        orders = gateway.backend.submitted
        metrics = (await gateway.get("/metrics")).body.decode()
    assert choice_texts(answer, stream=stream) == dict(enumerate(words))
    assert choice_reasons(answer, stream=stream) == {0: "stop", 1: "stop", 2: "length"}
    num_prompt, num_output = len(orders[0].prompt_token_ids), sum(map(len, ids))
    usage = answer.chunks[-1]["usage"] if stream else answer.json["usage"]
    assert usage == {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": 1},
    }
    assert sorted(order.sampling.seed for order in orders) == [5, 6, 7]
    assert len({order.prompt_token_ids for order in orders}) == 1
    assert f'generated_tokens_total{{model="tiny"}} {num_output}.0' in metrics
    assert f'prompt_tokens_total{{model="tiny"}} {num_prompt}.0' in metrics
    assert gateway.backend.aborted == []
    if stream:
        assert answer.events[-1] == "[DONE]"
        assert len({chunk["id"] for chunk in answer.chunks}) == 1


async def test_answers_without_a_seed_have_different_ones(model_dir: Path) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        await gateway.post(CHAT, chat(n=16))
        seeds = {order.sampling.seed for order in gateway.backend.submitted}
    assert len(seeds) == 16


async def test_streams_of_several_answers_interleave(model_dir: Path) -> None:
    async with serving(model_dir, keep_alive_s=0.01) as gateway:
        data = orjson.dumps(text(n=2, stream=True, max_tokens=50))
        async with gateway.session.post(gateway.url + TEXT, data=data) as response:
            pass_on = [await gateway.backend.next_order() for _ in range(2)]
            orders = {index_of(order): order for order in pass_on}
            seen = []
            for index in (1, 0, 0, 1):
                await gateway.backend.send(orders[index], [40])
                line = b""
                while not line.startswith(b"data: "):
                    line = await response.content.readline()
                (choice,) = orjson.loads(line.removeprefix(b"data: "))["choices"]
                seen.append(choice["index"])
            for order in orders.values():
                await gateway.backend.send(order, [41], FinishReason.STOP)
            rest = await response.read()
    assert seen == [1, 0, 0, 1]
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_where_one_answer_fails_the_others_are_given_up(
    model_dir: Path, *, stream: bool
) -> None:
    async def script(backend: Backend, order: RequestSubmitted) -> None:
        if index_of(order) == 1:
            await backend.fail(order, FailureCode.ADAPTER_FAILED)

    async with serving(model_dir, script) as gateway:
        answer = await gateway.post(CHAT, chat(n=3, stream=stream))
        aborts = [await gateway.backend.next_abort() for _ in range(2)]
        span = await gateway.span("chat tiny")
        assert (await gateway.get("/metrics")).status == 200
    assert (answer.status, answer.error["code"]) == (500, "adapter_failed")
    assert sorted(int(abort.request_id[-1]) for abort in aborts) == [0, 2]
    assert {abort.reason for abort in aborts} == {"adapter_failed"}
    assert len(gateway.backend.aborted) == 2
    assert span.attributes is not None
    assert span.attributes["error.type"] == "adapter_failed"


async def test_a_client_that_goes_away_gives_all_answers_up(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.service.port)
        body = orjson.dumps(chat(n=3, stream=True))
        head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % (CHAT.encode(), len(body)) + body)
        for _ in range(3):
            await gateway.backend.send(await gateway.backend.next_order(), [40])
        writer.close()
        aborts = [await gateway.backend.next_abort() for _ in range(3)]
    assert sorted(int(abort.request_id[-1]) for abort in aborts) == [0, 1, 2]
    assert {abort.reason for abort in aborts} == {"client went away"}


async def test_the_stop_token_is_no_text_but_counts(model_dir: Path, tokenizer: Tokenizer) -> None:
    *said, stop = await tokenizer.encode("one two!")
    async with serving(model_dir, saying([*said, stop])) as gateway:
        fields = {"stop_token_ids": [stop], "logprobs": 0, "max_tokens": 50}
        answer = await gateway.post(TEXT, text(**fields))
        (order,) = gateway.backend.submitted
    (choice,) = answer.json["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("one two", "stop")
    assert answer.json["usage"]["completion_tokens"] == len(said) + 1
    assert choice["logprobs"]["tokens"][-1] == "!"
    assert order.stopping.stop_token_ids == (stop,)


async def test_a_token_that_could_stop_but_did_not_is_text(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    ids = await tokenizer.encode("no!")
    async with serving(model_dir, saying([*ids, 40])) as gateway:
        fields = {"stop_token_ids": [ids[-1]], "max_tokens": len(ids)}
        answer = await gateway.post(TEXT, text(**fields))
    assert answer.json["choices"][0]["text"] == "no!"


async def test_stop_strings_count_behind_min_tokens_only(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    ids = await tokenizer.encode("xxxx")
    assert len(ids) == 4
    async with serving(model_dir, saying(ids)) as gateway:
        answer = await gateway.post(TEXT, text(stop="x", min_tokens=2))
        order = gateway.backend.submitted[0]
    assert answer.json["choices"][0]["text"] == "xx"
    assert order.stopping.min_tokens == 2


async def prompt_entries(tokenizer: Tokenizer, prompt: str) -> dict[str, Any]:
    """What completions tell of a prompt."""
    ids = await tokenizer.encode(prompt)
    _, offsets = await tokenizer.locate(prompt)
    return {
        "token_logprobs": [None, *(thought(token_id, 1).logprob for token_id in ids[1:])],
        "text_offset": offsets,
    }


@pytest.mark.parametrize("as_tokens", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_without_an_answer_scores_the_prompt(
    model_dir: Path, tokenizer: Tokenizer, *, stream: bool, as_tokens: bool
) -> None:
    """As evaluation harnesses ask for it: max_tokens 0."""
    prompt = "the lazy 日 dog"
    ids = await tokenizer.encode(prompt)
    async with serving(model_dir, saying([40, 41])) as gateway:
        fields = {"echo": True, "max_tokens": 0, "logprobs": 1, "stream": stream}
        answer = await gateway.post(TEXT, text(prompt=ids if as_tokens else prompt, **fields))
        (order,) = gateway.backend.submitted
    assert (order.max_tokens, order.prompt_logprobs, order.sampling.logprobs) == (1, 1, 1)
    assert choice_texts(answer, stream=stream) == {0: prompt}
    assert choice_reasons(answer, stream=stream) == {0: "length"}
    bodies = answer.chunks if stream else [answer.json]
    (told,) = [body["choices"][0]["logprobs"] for body in bodies if body["choices"][0]["logprobs"]]
    expected = await prompt_entries(tokenizer, prompt)
    assert {name: told[name] for name in expected} == expected
    assert len(told["tokens"]) == len(ids)
    assert told["top_logprobs"][0] is None
    for token, top, logprob in zip(
        told["tokens"][1:], told["top_logprobs"][1:], told["token_logprobs"][1:], strict=True
    ):
        assert top[token] == logprob
    if not stream:
        assert answer.json["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_goes_before_each_answer(
    model_dir: Path, tokenizer: Tokenizer, *, stream: bool
) -> None:
    ids = await tokenizer.encode(" and more")
    async with serving(model_dir, saying(ids)) as gateway:
        fields = {"echo": True, "n": 2, "logprobs": 2, "stream": stream, "max_tokens": 50}
        answer = await gateway.post(TEXT, text(prompt="hello", **fields))
    assert choice_texts(answer, stream=stream) == dict.fromkeys(range(2), "hello and more")
    expected = await prompt_entries(tokenizer, "hello")
    for index in range(2):
        bodies = answer.chunks if stream else [answer.json]
        told = [
            choice["logprobs"]
            for body in bodies
            for choice in body["choices"]
            if choice["index"] == index and choice["logprobs"]
        ]
        logprobs = [one for some in told for one in some["token_logprobs"]]
        offsets = [one for some in told for one in some["text_offset"]]
        answered = [thought(token_id, 0).logprob for token_id in ids]
        assert logprobs == expected["token_logprobs"] + answered
        assert offsets[: len(expected["text_offset"])] == expected["text_offset"]
        assert offsets[len(expected["text_offset"])] == len("hello")


async def test_an_echo_without_logprobs_is_text_alone(model_dir: Path) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        answer = await gateway.post(TEXT, text(prompt="hello", echo=True, max_tokens=0))
        (order,) = gateway.backend.submitted
    assert order.prompt_logprobs is None
    (choice,) = answer.json["choices"]
    assert (choice["text"], choice["logprobs"]) == ("hello", None)


async def test_special_tokens_are_echoed_by_their_names(
    model_dir: Path, tokenizer: Tokenizer
) -> None:
    ids = await tokenizer.encode("<|im_start|>user")
    async with serving(model_dir, saying([40])) as gateway:
        answer = await gateway.post(TEXT, text(prompt=ids, echo=True, max_tokens=0))
    assert answer.json["choices"][0]["text"] == "<|im_start|>user"


@pytest.mark.parametrize("echo", [False, True])
async def test_a_worker_that_tells_no_log_probabilities_is_found_out(
    model_dir: Path, *, echo: bool
) -> None:
    async with serving(model_dir) as gateway, asyncio.TaskGroup() as tasks:
        body = text(prompt=[65, 66], echo=echo, logprobs=1, max_tokens=1)
        asking = tasks.create_task(gateway.post(TEXT, body))
        order = await gateway.backend.next_order()
        asked = replace(order.sampling, logprobs=1 if echo else None)
        silent = replace(order, sampling=asked, prompt_logprobs=None)
        await gateway.backend.send(silent, [40], FinishReason.LENGTH)
        answer = await asking
    assert answer.status == 500
    assert "did not tell" in answer.error["message"]
