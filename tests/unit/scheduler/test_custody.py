"""Deliveries that are kept, and the spans of their waiting."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from anole_scheduler.core.residency import Residency
from anole_scheduler.custody import Custody
from anole_shared.messages import FailureCode
from anole_shared.telemetry import Attribute, SpanName, Telemetry
from tests.unit.scheduler.letters import Letter, submitted

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def custody(exporter: InMemorySpanExporter) -> Iterator[Custody]:
    telemetry = Telemetry("scheduler", exporter=exporter)
    yield Custody(telemetry.tracer)
    telemetry.shutdown()


async def test_a_delivery_is_acknowledged_when_its_attempt_is_done(custody: Custody) -> None:
    letter = Letter(submitted("r1"))
    await custody.hold(letter, letter.message, 0)
    assert letter.num_acks == 0
    await custody.done("r1", 0)
    assert letter.num_acks == 1
    assert len(custody) == 0


async def test_attempts_are_kept_apart(custody: Custody) -> None:
    first, second = Letter(submitted("r1")), Letter(submitted("r1", attempt=1))
    await custody.hold(first, first.message, 0)
    await custody.hold(second, second.message, 0)
    await custody.done("r1", 0)
    assert (first.num_acks, second.num_acks) == (1, 0)


async def test_a_redelivery_is_kept_and_acknowledged_with_the_first(custody: Custody) -> None:
    first = Letter(submitted("r1"))
    again = Letter(submitted("r1"), redelivered=True)
    await custody.hold(first, first.message, 0)
    await custody.hold(again, again.message, 0)
    assert again.num_acks == 0
    await custody.done("r1", 0)
    assert again.num_acks == 1


async def test_a_second_copy_from_the_gateway_is_acknowledged_at_once(custody: Custody) -> None:
    first, copy = Letter(submitted("r1")), Letter(submitted("r1"))
    await custody.hold(first, first.message, 0)
    await custody.hold(copy, copy.message, 0)
    assert (first.num_acks, copy.num_acks) == (0, 1)


async def test_the_wait_is_a_span_of_the_requests_trace(
    custody: Custody, exporter: InMemorySpanExporter
) -> None:
    letter = Letter(submitted("r1", attempt=1, adapter_id="a"), headers=HEADERS)
    await custody.hold(letter, letter.message, 5)
    assert not exporter.get_finished_spans()
    custody.admitted("r1", 1, "w1", Residency.RESIDENT)
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == (SpanName.QUEUE, SpanKind.CONSUMER)
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert span.attributes == {
        Attribute.REQUEST_ID: "r1",
        Attribute.ATTEMPT: 1,
        Attribute.ADAPTER: "a",
        Attribute.QUEUE_LENGTH: 5,
        Attribute.WORKER: "w1",
        Attribute.ADAPTER_HIT: True,
    }
    headers = custody.get("r1", 1).headers
    assert headers["traceparent"] == f"00-{TRACE}-{span.context.span_id:016x}-01"


async def test_a_failure_while_waiting_is_the_spans_error(
    custody: Custody, exporter: InMemorySpanExporter
) -> None:
    letter = Letter(submitted("r1"))
    await custody.hold(letter, letter.message, 0)
    custody.failed("r1", 0, FailureCode.QUEUE_FULL, "full")
    await custody.done("r1", 0)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes[Attribute.ERROR_TYPE] == "queue_full"


async def test_a_failure_after_admission_leaves_the_wait_as_it_was(
    custody: Custody, exporter: InMemorySpanExporter
) -> None:
    letter = Letter(submitted("r1"))
    await custody.hold(letter, letter.message, 0)
    custody.admitted("r1", 0, "w1", None)
    custody.failed("r1", 0, FailureCode.WORKER_LOST, "lost")
    await custody.done("r1", 0)
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.UNSET


async def test_closing_ends_the_spans_and_acknowledges_nothing(
    custody: Custody, exporter: InMemorySpanExporter
) -> None:
    letter = Letter(submitted("r1"))
    await custody.hold(letter, letter.message, 0)
    custody.close()
    assert letter.num_acks == 0
    assert len(exporter.get_finished_spans()) == 1
