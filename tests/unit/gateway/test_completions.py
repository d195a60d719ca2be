"""Completions that do not stream, and every way in which a request can be refused."""

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from anole_gateway.tokenizer import Tokenizer
from anole_shared.bus import Headers
from anole_shared.bus_memory import MemoryBus
from anole_shared.errors import BusUnavailable, QueueFull
from anole_shared.ids import RequestId
from anole_shared.messages import (
    FailureCode,
    Message,
    RequestAborted,
    RequestSubmitted,
    Sampling,
    Stopping,
)
from anole_shared.topology import SCHEDULER, Queue
from tests.unit.gateway.backend import failing, saying
from tests.unit.gateway.conftest import CONTEXT_LENGTH
from tests.unit.gateway.harness import CHAT, TEXT, Gateway, adapter, chat, serving, text


async def test_a_chat_is_answered_whole(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("héllo 日本 world")
    async with serving(model_dir, saying(ids)) as gateway:
        answer = await gateway.post(CHAT, chat())
        prompt = gateway.backend.submitted[0].prompt_token_ids
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    (choice,) = answer.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": "héllo 日本 world"}
    assert choice["finish_reason"] == "stop"
    assert answer.json["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(ids),
        "total_tokens": len(prompt) + len(ids),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_text_is_answered_up_to_its_limit(model_dir: Path) -> None:
    async with serving(model_dir, saying([40, 41, 42])) as gateway:
        answer = await gateway.post(TEXT, text(max_tokens=2))
    assert answer.json["choices"][0]["finish_reason"] == "length"
    assert answer.json["usage"]["completion_tokens"] == 2


async def submit(gateway: Gateway, path: str, body: dict[str, Any]) -> RequestSubmitted:
    assert (await gateway.post(path, body)).status == 200
    return gateway.backend.submitted[-1]


async def test_what_is_submitted_is_what_was_asked(model_dir: Path, tokenizer: Tokenizer) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        await gateway.add_adapter(adapter("poet"))
        fields = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "ignore_eos": True}
        order = await submit(gateway, TEXT, text(model="poet", max_tokens=9, **fields))
    assert order.prompt_token_ids == tuple(await tokenizer.encode("hello"))
    assert order.sampling == Sampling(temperature=0.5, top_p=0.9, seed=7)
    assert order.stopping == Stopping(ignore_eos=True)
    assert (order.adapter_id, order.max_tokens, order.prompt_logprobs) == ("poet", 9, None)
    assert order.attempt == 0


async def test_defaults_are_openais_and_the_seed_is_drawn(model_dir: Path) -> None:
    async with serving(model_dir, saying([40]), default_max_tokens=30) as gateway:
        first = await submit(gateway, CHAT, chat())
        second = await submit(gateway, TEXT, text())
        third = await submit(gateway, TEXT, text(prompt=[65] * (CONTEXT_LENGTH - 3)))
    assert (first.max_tokens, second.max_tokens, third.max_tokens) == (30, 16, 3)
    assert (first.sampling.temperature, first.sampling.top_p) == (1.0, 1.0)
    assert len({order.sampling.seed for order in (first, second, third)}) == 3
    assert first.adapter_id is None
    assert first.stopping == Stopping()


async def test_tokens_are_a_prompt_as_they_are(model_dir: Path) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        order = await submit(gateway, TEXT, text(prompt=[65, 66, 67]))
    assert order.prompt_token_ids == (65, 66, 67)


async def test_developer_is_the_templates_system(model_dir: Path, tokenizer: Tokenizer) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        orders = [
            await submit(gateway, CHAT, chat(messages=[{"role": role, "content": "be brief"}]))
            for role in ("system", "developer")
        ]
    assert orders[0].prompt_token_ids == orders[1].prompt_token_ids


REFUSED: list[tuple[str, dict[str, Any], int, str, str | None, str]] = [
    (CHAT, chat(model="tinny"), 404, "model_not_found", "model", "Did you mean 'tiny'?"),
    (CHAT, chat(model="broken"), 404, "model_not_found", "model", "no weights"),
    (CHAT, chat(messages=[]), 400, "invalid_request", "messages", "at least 1 item"),
    (CHAT, chat(max_tokens=-1), 400, "invalid_request", "max_tokens", "greater than or equal to 1"),
    (CHAT, chat(n=17), 400, "invalid_request", "n", "less than or equal to 16"),
    (CHAT, chat(best_of=2), 400, "unsupported_parameter", "best_of", "ask for n answers"),
    (CHAT, chat(top_logprobs=2), 400, "invalid_request", "top_logprobs", '"logprobs": true'),
    (CHAT, chat(stop_token_ids=[10**6]), 400, "invalid_request", "stop_token_ids", "must be below"),
    (CHAT, chat(logit_bias={"999999": 1}), 400, "invalid_request", "logit_bias", "must be below"),
    (
        CHAT,
        chat(min_tokens=9, max_tokens=8),
        400,
        "invalid_request",
        "min_tokens",
        "more than the 8 tokens",
    ),
    (TEXT, text(min_tokens=17), 400, "invalid_request", "min_tokens", "more than the 16 tokens"),
    (TEXT, text(max_tokens=0), 400, "invalid_request", "max_tokens", "0 goes with echo only"),
    (CHAT, chat(tools=[{}]), 400, "unsupported_parameter", "tools", "not supported"),
    (CHAT, {"messages": []}, 400, "invalid_request", "model", "Field required"),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]),
        400,
        "invalid_request",
        "messages",
        "the system message must come first",
    ),
    (
        CHAT,
        chat(messages=[{"role": "user", "content": "lazy dog " * 600}]),
        400,
        "context_length_exceeded",
        None,
        "the model's context holds 256",
    ),
    (TEXT, text(prompt=""), 400, "invalid_request", "prompt", "no tokens"),
    (TEXT, text(prompt=["a", "b"]), 400, "invalid_request", "prompt", "one prompt a request"),
    (TEXT, text(prompt=[10**6]), 400, "invalid_request", "prompt", "token ids must be below"),
    (
        TEXT,
        text(prompt=[65] * 200, max_tokens=57),
        400,
        "context_length_exceeded",
        "max_tokens",
        "200 tokens and the answer may have 57, together 257",
    ),
]


@pytest.mark.parametrize(("path", "body", "status", "code", "param", "says"), REFUSED)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_done_is_said_in_openais_shape(
    model_dir: Path,
    path: str,
    body: dict[str, Any],
    status: int,
    code: str,
    param: str | None,
    says: str,
    *,
    stream: bool,
) -> None:
    async with serving(model_dir) as gateway:
        await gateway.add_adapter(adapter("broken", refused="no weights"))
        answer = await gateway.post(path, body | {"stream": stream})
        assert gateway.backend.submitted == []
    assert answer.status == status
    assert answer.error["code"] == code
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
    assert says in answer.error["message"]


async def test_a_body_that_is_too_large_is_413(model_dir: Path) -> None:
    async with serving(model_dir, max_body_bytes=2048) as gateway:
        answer = await gateway.post(TEXT, b" " * 2049)
    assert answer.status == 413
    assert answer.error["code"] == "body_too_large"


async def test_a_body_is_json_whatever_its_content_type(model_dir: Path) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
            answer = await gateway.post(TEXT, text(), headers={"Content-Type": content_type})
            assert answer.status == 200


async def test_a_compressed_body_is_refused(model_dir: Path) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        headers = {"Content-Encoding": "gzip"}
        packed = await gateway.post(TEXT, gzip.compress(orjson.dumps(text())), headers=headers)
    assert packed.status == 400
    assert "must not be compressed" in packed.error["message"]


@pytest.mark.parametrize(
    ("code", "status", "retry_after"),
    [
        (FailureCode.QUEUE_FULL, 429, "4"),
        (FailureCode.NO_WORKER, 503, "4"),
        (FailureCode.TOO_LONG, 400, None),
        (FailureCode.UNKNOWN_ADAPTER, 404, None),
        (FailureCode.ADAPTER_FAILED, 500, None),
        (FailureCode.INTERNAL, 500, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_the_first_token_is_an_http_error(
    model_dir: Path, code: FailureCode, status: int, retry_after: str | None, *, stream: bool
) -> None:
    async with serving(model_dir, failing(code, 3.5)) as gateway:
        answer = await gateway.post(CHAT, chat(stream=stream))
    assert answer.status == status
    assert answer.error["message"] == "it did not work"
    assert answer.headers.get("retry-after") == retry_after
    assert gateway.backend.aborted == []


class RefusingBus(MemoryBus):
    """Takes no requests."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        if isinstance(message, RequestSubmitted):
            raise self.fault
        await super().publish(queue, message, headers)


@pytest.mark.parametrize(
    ("fault", "status", "code", "aborts"),
    [
        (
            BusUnavailable("rabbitmq.internal:5672 broke off"),
            503,
            "service_unavailable",
            ["service_unavailable"],
        ),
        (QueueFull("queue is at its limit"), 429, "rate_limit_exceeded", []),
    ],
)
async def test_a_bus_that_takes_nothing_is_told_to_the_client(
    model_dir: Path, fault: Exception, status: int, code: str, aborts: list[str]
) -> None:
    """Only where the connection broke may the scheduler have the request all the same."""
    async with serving(model_dir, bus=RefusingBus(fault), retry_after_s=2) as gateway:
        answer = await gateway.post(CHAT, chat())
        last = RequestAborted(request_id=RequestId("behind all others"), reason="the end")
        await gateway.bus.publish(SCHEDULER, last, {})
        while await gateway.backend.next_abort() != last:
            pass
    assert [abort.reason for abort in gateway.backend.aborted] == [*aborts, "the end"]
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.headers["retry-after"] == "2"
    assert str(fault) not in answer.error["message"]


async def test_what_nobody_foresaw_is_logged_and_not_told(
    model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = RefusingBus(RuntimeError("a secret"))
    async with serving(model_dir, bus=bus) as gateway:
        answer = await gateway.post(CHAT, chat(), headers={"x-request-id": "my-id"})
    assert answer.status == 500
    assert answer.error["code"] == "internal_error"
    assert "my-id" in answer.error["message"]
    assert b"secret" not in answer.body
    assert "a secret" in caplog.text
