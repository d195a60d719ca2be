"""How one trace spans several services."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span

from anole_shared.telemetry import SpanName, Telemetry, child_of, context_of, headers_of


def test_a_span_goes_on_in_another_service_through_headers() -> None:
    exporter = InMemorySpanExporter()
    gateway = Telemetry("gateway", exporter=exporter)
    worker = Telemetry("worker", instance_id="w1", exporter=exporter)
    with gateway.tracer.start_as_current_span(SpanName.SUBMIT) as submit:
        headers = headers_of(submit)
    with worker.tracer.start_as_current_span(SpanName.SEQUENCE, context=context_of(headers)):
        pass
    sent, received = exporter.get_finished_spans()
    assert received.context.trace_id == sent.context.trace_id
    assert received.parent is not None
    assert received.parent.span_id == sent.context.span_id
    assert sent.resource.attributes[SERVICE_NAME] == "anole-gateway"
    assert received.resource.attributes[SERVICE_NAME] == "anole-worker"
    assert received.resource.attributes[SERVICE_INSTANCE_ID] == "w1"


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"tracestate": "a=b"}])
def test_headers_without_a_trace_start_a_new_one(headers: dict[str, str]) -> None:
    exporter = InMemorySpanExporter()
    worker = Telemetry("worker", exporter=exporter)
    with worker.tracer.start_as_current_span("outer"):
        worker.tracer.start_span(SpanName.SEQUENCE, context=context_of(headers)).end()
    inner, outer = exporter.get_finished_spans()
    assert inner.parent is None
    assert inner.context.trace_id != outer.context.trace_id


def test_a_child_belongs_to_the_span_that_is_named_not_to_the_current_one() -> None:
    exporter = InMemorySpanExporter()
    worker = Telemetry("worker", exporter=exporter)
    sequence = worker.tracer.start_span(SpanName.SEQUENCE)
    with worker.tracer.start_as_current_span("other"):
        worker.tracer.start_span(SpanName.PREFILL, context=child_of(sequence)).end()
    prefill = exporter.get_finished_spans()[0]
    assert prefill.parent is not None
    assert prefill.parent.span_id == sequence.get_span_context().span_id


def test_a_service_that_records_nothing_still_passes_a_trace_on() -> None:
    exporter = InMemorySpanExporter()
    gateway, scheduler = Telemetry("gateway", exporter=exporter), Telemetry("scheduler")
    with gateway.tracer.start_as_current_span(SpanName.SUBMIT) as submit:
        headers = headers_of(submit)
    queue = scheduler.tracer.start_span(SpanName.QUEUE, context=context_of(headers))
    assert not queue.is_recording()
    onward = context_of(headers_of(queue))
    assert get_current_span(onward).get_span_context().trace_id == (
        submit.get_span_context().trace_id
    )


class Collector(ThreadingHTTPServer):
    """Takes what an OTLP/HTTP exporter sends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), CollectorHandler)
        self.paths: list[str] = []


class CollectorHandler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.paths.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


@pytest.mark.parametrize("suffix", ["", "/"])
def test_shutting_down_sends_what_is_left_to_the_collector(
    collector: Collector, suffix: str
) -> None:
    telemetry = Telemetry("gateway", endpoint=f"http://127.0.0.1:{collector.server_port}{suffix}")
    telemetry.tracer.start_span(SpanName.REQUEST).end()
    telemetry.shutdown()
    assert collector.paths == ["/v1/traces"]
