"""Deliveries that are kept, and the spans of their waiting."""

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from anole_scheduler.core.predictor import OnlinePredictor
from anole_scheduler.core.residency import Residency
from anole_scheduler.custody import Custody
from anole_scheduler.tally import WAIT_BOUNDS_S, Tally
from anole_shared.codec import decode_record, encode
from anole_shared.messages import FailureCode, SchedulerRecord, Size
from anole_shared.telemetry import Attribute, SpanName, Telemetry
from tests.clocks import HandClock
from tests.unit.scheduler.letters import Letter, make_custody, submitted

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def custody(exporter: InMemorySpanExporter) -> Iterator[Custody]:
    telemetry = Telemetry("scheduler", exporter=exporter)
    yield make_custody(telemetry.tracer)
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


async def test_what_is_given_back_waits_again_with_a_span_of_its_own(
    custody: Custody, exporter: InMemorySpanExporter
) -> None:
    letter = Letter(submitted("r1"), headers=HEADERS)
    await custody.hold(letter, letter.message, 0)
    custody.wait_again("r1", 0, "w1", 5)
    assert exporter.get_finished_spans() == (), "it waits already"
    custody.admitted("r1", 0, "w1", None)
    custody.wait_again("r1", 0, "w1", 5)
    custody.wait_again("unknown", 0, "w1", 5)
    custody.admitted("r1", 0, "w2", None)
    first, second = exporter.get_finished_spans()
    assert first.context.trace_id == second.context.trace_id == int(TRACE, 16)
    assert (first.attributes or {})[Attribute.WORKER] == "w1"
    assert (second.attributes or {})[Attribute.WORKER] == "w2"
    await custody.done("r1", 0)
    assert letter.num_acks == 1


async def test_waits_and_ends_are_counted_by_size() -> None:
    tally, clock = Tally(), HandClock()
    custody = make_custody(tally=tally, clock=clock)
    for name, max_tokens in [("small", 16), ("large", 5000), ("failed", 600), ("gone", 600)]:
        letter = Letter(submitted(name, max_tokens=max_tokens))
        await custody.hold(letter, letter.message, 0)
    clock.time_s += 0.3
    custody.admitted("small", 0, "w1", Residency.RESIDENT)
    clock.time_s += 400
    custody.admitted("large", 0, "w1", Residency.LOADING)
    custody.failed("failed", 0, FailureCode.NO_WORKER, "none")
    await custody.done("failed", 0)
    record = tally.record("s1", OnlinePredictor())
    sizes = {size.size: size for size in record.sizes}
    assert {size: found.num_waiting for size, found in sizes.items()} == {
        Size.SMALL: 0,
        Size.MEDIUM: 1,
        Size.LARGE: 0,
    }
    assert record.num_running == 2
    assert sizes[Size.SMALL].wait_counts[WAIT_BOUNDS_S.index(0.5)] == 1
    assert sizes[Size.LARGE].wait_counts[-1] == 1
    assert sizes[Size.LARGE].wait_sum_s == pytest.approx(400.3)
    assert sum(sizes[Size.MEDIUM].wait_counts) == sizes[Size.MEDIUM].num_admitted == 0
    assert (record.num_adapter_lookups, record.num_adapter_hits) == (2, 1)
    assert record.failed == {"no_worker": 1}
    assert decode_record(SchedulerRecord, encode(record)) == record
    await custody.done("small", 0)
    custody.wait_again("large", 0, "w1", 0)
    custody.close()
    record = tally.record("s1", OnlinePredictor())
    assert record.num_running == 0
    assert [size.num_waiting for size in record.sizes] == [0, 0, 0]


async def test_what_is_given_back_twice_runs_on_where_it_went_meanwhile() -> None:
    tally = Tally()
    custody = make_custody(tally=tally, clock=HandClock())
    letter = Letter(submitted("r1"))
    await custody.hold(letter, letter.message, 0)
    custody.admitted("r1", 0, "w1", None)
    custody.wait_again("r1", 0, "w1", 0)
    custody.admitted("r1", 0, "w2", None)
    custody.wait_again("r1", 0, "w1", 0)
    record = tally.record("s1", OnlinePredictor())
    assert record.num_running == 1
    assert [size.num_waiting for size in record.sizes] == [0, 0, 0]
