"""What a trace shows of one completion."""

import asyncio
from pathlib import Path

import orjson
import pytest
from opentelemetry.trace import SpanKind, StatusCode

from anole_gateway.tokenizer import Tokenizer
from anole_shared.messages import FailureCode
from anole_shared.telemetry import Attribute, SpanName
from tests.unit.gateway.backend import failing, saying
from tests.unit.gateway.harness import CHAT, TEXT, adapter, chat, serving, text

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}


async def test_the_span_of_a_completion_tells_all(model_dir: Path, tokenizer: Tokenizer) -> None:
    ids = await tokenizer.encode("hello 日本")
    async with serving(model_dir, saying(ids)) as gateway:
        await gateway.add_adapter(adapter("poet"))
        fields = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 50}
        answer = await gateway.post(CHAT, chat(model="poet", stream=True, **fields))
        span = await gateway.span("chat poet")
        order = gateway.backend.submitted[0]
    assert span.kind is SpanKind.SERVER
    assert span.attributes is not None
    attributes = dict(span.attributes)
    assert attributes.pop(Attribute.TIME_TO_FIRST_CHUNK) > 0
    assert attributes == {
        Attribute.HTTP_METHOD: "POST",
        Attribute.HTTP_ROUTE: CHAT,
        Attribute.HTTP_STATUS: 200,
        Attribute.OPERATION: "chat",
        Attribute.PROVIDER: "anole",
        Attribute.REQUEST_MODEL: "poet",
        Attribute.RESPONSE_MODEL: "poet",
        Attribute.RESPONSE_ID: answer.chunks[0]["id"],
        Attribute.BASE_MODEL: "tiny",
        Attribute.ADAPTER: "poet",
        Attribute.ADAPTER_RANK: 8,
        Attribute.REQUEST_ID: order.request_id,
        Attribute.MAX_TOKENS: 50,
        Attribute.TEMPERATURE: 0.5,
        Attribute.TOP_P: 0.9,
        Attribute.SEED: 7,
        Attribute.STREAM: True,
        Attribute.INPUT_TOKENS: len(order.prompt_token_ids),
        Attribute.OUTPUT_TOKENS: len(ids),
        Attribute.FINISH_REASONS: ("stop",),
    }
    assert [event.name for event in span.events] == ["first_token"]
    assert span.status.status_code is StatusCode.UNSET


async def test_a_trace_goes_from_the_client_through_the_gateway_onto_the_bus(
    model_dir: Path,
) -> None:
    async with serving(model_dir, saying([40])) as gateway:
        await gateway.post(TEXT, text(), headers=TRACEPARENT)
        root = await gateway.span("text_completion tiny")
        tokenize = await gateway.span(SpanName.TOKENIZE)
        submit = await gateway.span(SpanName.SUBMIT)
        carried = gateway.backend.headers[0]["traceparent"]
    assert root.parent is not None
    assert root.context is not None
    assert submit.context is not None
    assert f"{root.context.trace_id:032x}" == TRACE_ID
    assert f"{root.parent.span_id:016x}" == PARENT_ID
    for child in (tokenize, submit):
        assert child.parent is not None
        assert child.parent.span_id == root.context.span_id
    assert submit.kind is SpanKind.PRODUCER
    assert submit.attributes is not None
    assert submit.attributes[Attribute.ATTEMPT] == 0
    assert carried == f"00-{TRACE_ID}-{submit.context.span_id:016x}-01"


async def test_a_failure_of_ours_is_an_error(model_dir: Path) -> None:
    async with serving(model_dir, failing(FailureCode.INTERNAL)) as gateway:
        await gateway.post(CHAT, chat())
        span = await gateway.span("chat tiny")
    assert span.attributes is not None
    assert span.attributes[Attribute.ERROR_TYPE] == "internal_error"
    assert span.attributes[Attribute.HTTP_STATUS] == 500
    assert span.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize(
    ("body", "code", "status"),
    [(chat(model="nope"), "model_not_found", 404), (b" " * 2000, "body_too_large", 413)],
)
async def test_a_mistake_of_the_client_is_named_but_no_error(
    model_dir: Path, body: object, code: str, status: int
) -> None:
    async with serving(model_dir, max_body_bytes=1024) as gateway:
        await gateway.post(CHAT, body)
        span = await gateway.span(SpanName.REQUEST)
    assert span.attributes is not None
    assert span.attributes[Attribute.ERROR_TYPE] == code
    assert span.attributes[Attribute.HTTP_STATUS] == status
    assert span.status.status_code is StatusCode.UNSET


async def test_a_client_that_goes_away_is_named(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.service.port)
        body = orjson.dumps(text())
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        await gateway.backend.next_order()
        writer.close()
        span = await gateway.span("text_completion tiny")
    assert span.attributes is not None
    assert span.attributes[Attribute.ERROR_TYPE] == "client_disconnected"


async def test_tokens_and_times_are_counted(model_dir: Path) -> None:
    async with serving(model_dir, saying([40, 41, 42])) as gateway:
        await gateway.add_adapter(adapter("poet"))
        await gateway.post(TEXT, text(model="poet", prompt=[65, 66]))
        await gateway.span("text_completion poet")
        lines = (await gateway.get("/metrics")).body.decode().splitlines()
    kind = 'kind="adapter",operation="text_completion"'
    for line in (
        'anole_gateway_prompt_tokens_total{model="poet"} 2.0',
        'anole_gateway_generated_tokens_total{model="poet"} 3.0',
        f"anole_gateway_time_to_first_token_seconds_count{{{kind}}} 1.0",
        f"anole_gateway_time_per_output_token_seconds_count{{{kind}}} 1.0",
        f"anole_gateway_request_duration_seconds_count{{{kind}}} 1.0",
    ):
        assert line in lines
