"""One request over four processes and RabbitMQ is one trace."""

import time

import pytest
from openai import OpenAI

from anole_shared.telemetry import Attribute, SpanName
from tests.e2e.otlp import OtlpReceiver, ReceivedSpan
from tests.e2e.stack import BASE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.integration, pytest.mark.timeout(180)]


def roots_of(spans: list[ReceivedSpan]) -> list[ReceivedSpan]:
    """The spans whose parent has not come (yet)."""
    known = {span.span_id for span in spans}
    return [span for span in spans if span.parent_id not in known]


def whole_trace(otlp: OtlpReceiver, adapter: str) -> list[ReceivedSpan]:
    """The trace in which the adapter answered, once every service has sent its part.

    After half a minute whatever has come, for the test to show what is missing.
    """
    deadline = time.monotonic() + 30
    spans: list[ReceivedSpan] = []
    while time.monotonic() < deadline:
        for spans in otlp.traces().values():
            asked = {span.attributes.get(Attribute.REQUEST_MODEL) for span in spans}
            services = {span.service for span in spans}
            if adapter in asked and len(services) == 4 and len(roots_of(spans)) == 1:
                return spans
        time.sleep(0.2)
    return spans


def test_a_request_is_one_connected_trace(processes: Stack, otlp: OtlpReceiver) -> None:
    """The adapter `fresh` is asked for by this test alone, so its load is part of the trace."""
    with OpenAI(base_url=f"{processes.url}/v1", api_key="unused") as client:
        answer = client.chat.completions.create(
            model="fresh",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            max_tokens=16,
            temperature=0,
        )
    spans = whole_trace(otlp, "fresh")
    by_id = {span.span_id: span for span in spans}
    roots = roots_of(spans)
    assert len(roots) == 1, roots
    root = roots[0]
    assert (root.service, root.name) == ("anole-gateway", "chat fresh")
    assert root.attributes[Attribute.OPERATION] == "chat"
    assert root.attributes[Attribute.PROVIDER] == "anole"
    assert root.attributes[Attribute.BASE_MODEL] == BASE
    assert answer.usage is not None
    assert root.attributes[Attribute.INPUT_TOKENS] == answer.usage.prompt_tokens
    assert root.attributes[Attribute.OUTPUT_TOKENS] == answer.usage.completion_tokens

    service_of = {span.name: span.service for span in spans}
    assert service_of[SpanName.TOKENIZE] == "anole-gateway"
    assert service_of[SpanName.SUBMIT] == "anole-gateway"
    assert service_of[SpanName.QUEUE] == "anole-scheduler"
    assert service_of[SpanName.SEQUENCE] == "anole-worker"
    assert service_of[SpanName.ADAPTER_LOAD] == "anole-worker"
    assert service_of[SpanName.PREFILL] == "anole-worker"
    assert service_of[SpanName.DECODE] == "anole-worker"
    assert service_of[SpanName.LEASE] == "anole-memd"

    named = {span.name: span for span in spans}
    # The scheduler has it loaded while the request waits there.
    load = named[SpanName.ADAPTER_LOAD]
    assert by_id[load.parent_id].name == SpanName.QUEUE
    assert load.end_ns <= named[SpanName.PREFILL].end_ns
    lease = named[SpanName.LEASE]
    assert by_id[lease.parent_id].name == SpanName.ADAPTER_LOAD
    assert named[SpanName.PREFILL].end_ns <= named[SpanName.DECODE].end_ns <= root.end_ns
