import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from anole_memd.backends import memfd
from anole_memd.core.lease import LeaseTable
from anole_memd.lessor import Lessor
from anole_shared.errors import MessageError
from anole_shared.ids import LeaseId
from anole_shared.messages import (
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRequested,
    MemoryStatusReported,
    MemoryStatusRequested,
)
from anole_shared.telemetry import Telemetry, headers_of
from anole_shared.units import HUGE_PAGE_BYTES

ALICE, BOB = 1, 2


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def telemetry(spans: InMemorySpanExporter) -> Iterator[Telemetry]:
    telemetry = Telemetry("memd", exporter=spans)
    yield telemetry
    telemetry.shutdown()


@pytest.fixture
def lessor(telemetry: Telemetry) -> Iterator[Lessor]:
    table = LeaseTable(budget_bytes=4 * HUGE_PAGE_BYTES, max_leases_per_owner=8)
    lessor = Lessor(table, telemetry.tracer, memfd.create)
    yield lessor
    for owner in (ALICE, BOB):
        lessor.holder_gone(owner)


def ask(num_bytes: int = HUGE_PAGE_BYTES, headers: dict[str, str] | None = None) -> LeaseRequested:
    return LeaseRequested(
        num_bytes=num_bytes, holder="worker-1", purpose="french", headers=headers or {}
    )


def status_of(lessor: Lessor) -> tuple[int, int]:
    report = lessor.handle(BOB, MemoryStatusRequested()).message
    assert isinstance(report, MemoryStatusReported)
    assert report.total_bytes == 4 * HUGE_PAGE_BYTES
    return report.leased_bytes, report.num_leases


def granted(lessor: Lessor, num_bytes: int = HUGE_PAGE_BYTES, owner: int = ALICE) -> LeaseGranted:
    message = lessor.handle(owner, ask(num_bytes)).message
    assert isinstance(message, LeaseGranted)
    return message


def test_a_grant_comes_with_a_descriptor_of_that_size(lessor: Lessor) -> None:
    answer = lessor.handle(ALICE, ask(2 * HUGE_PAGE_BYTES - 1))
    assert isinstance(answer.message, LeaseGranted)
    assert answer.message.num_bytes == 2 * HUGE_PAGE_BYTES
    assert answer.descriptor is not None
    assert os.fstat(answer.descriptor).st_size == 2 * HUGE_PAGE_BYTES
    assert status_of(lessor) == (2 * HUGE_PAGE_BYTES, 1)


def test_a_release_closes_the_descriptor(lessor: Lessor) -> None:
    before = num_descriptors()
    lease = granted(lessor)
    assert num_descriptors() == before + 1
    answer = lessor.handle(ALICE, LeaseReleased(lease_id=lease.lease_id))
    assert answer.message == LeaseEnded(lease_id=lease.lease_id)
    assert num_descriptors() == before
    assert status_of(lessor) == (0, 0)


def test_another_connections_lease_cannot_be_released(lessor: Lessor) -> None:
    lease = granted(lessor)
    answer = lessor.handle(BOB, LeaseReleased(lease_id=lease.lease_id))
    assert answer.message == LeaseEnded(lease_id=lease.lease_id)
    assert status_of(lessor) == (HUGE_PAGE_BYTES, 1)


def test_a_lease_that_never_was_is_said_to_have_ended(lessor: Lessor) -> None:
    lease_id = LeaseId("lease-of-an-earlier-memd")
    assert lessor.handle(ALICE, LeaseReleased(lease_id=lease_id)).message == LeaseEnded(
        lease_id=lease_id
    )


def test_a_holder_that_is_gone_leaves_no_descriptor(lessor: Lessor) -> None:
    before = num_descriptors()
    granted(lessor)
    granted(lessor)
    kept = granted(lessor, owner=BOB)
    lessor.holder_gone(ALICE)
    assert num_descriptors() == before + 1
    assert status_of(lessor) == (kept.num_bytes, 1)


def test_a_denial_says_why_and_changes_nothing(lessor: Lessor) -> None:
    answer = lessor.handle(ALICE, ask(5 * HUGE_PAGE_BYTES))
    assert isinstance(answer.message, LeaseDenied)
    assert "ANOLE_MEMD_BUDGET_BYTES" in answer.message.reason
    assert answer.descriptor is None
    assert status_of(lessor) == (0, 0)


def test_when_the_kernel_has_no_region_the_budget_is_not_used_up(telemetry: Telemetry) -> None:
    def none_left(name: str, num_bytes: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    table = LeaseTable(budget_bytes=4 * HUGE_PAGE_BYTES, max_leases_per_owner=8)
    lessor = Lessor(table, telemetry.tracer, none_left)
    answer = lessor.handle(ALICE, ask())
    assert isinstance(answer.message, LeaseDenied)
    assert "Too many open files" in answer.message.reason
    assert status_of(lessor) == (0, 0)


def test_a_message_that_only_memd_sends_is_an_error(lessor: Lessor) -> None:
    with pytest.raises(MessageError, match=r"lease\.ended"):
        lessor.handle(ALICE, LeaseEnded(lease_id=LeaseId("lease-1")))


def test_a_grant_is_a_span_in_the_askers_trace(
    lessor: Lessor, telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    with telemetry.tracer.start_as_current_span("adapter.load") as load:
        headers = headers_of(load)
    lessor.handle(ALICE, ask(headers=headers))
    span = spans.get_finished_spans()[-1]
    assert span.name == "lease"
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert span.parent.span_id == load.get_span_context().span_id
    assert span.context.trace_id == load.get_span_context().trace_id
    assert span.attributes is not None
    assert span.attributes["anole.lease.bytes"] == HUGE_PAGE_BYTES
    assert span.status.status_code is StatusCode.UNSET


def test_a_denial_is_a_span_that_failed(lessor: Lessor, spans: InMemorySpanExporter) -> None:
    lessor.handle(ALICE, ask(0, headers={"traceparent": "no such thing"}))
    span = spans.get_finished_spans()[-1]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "BadRegionSize"
    assert span.parent is None
