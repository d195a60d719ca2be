"""Lessor: answers one message at a time and keeps the descriptor of every leased region."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.trace import SpanKind, StatusCode, Tracer

from anole_memd.core.lease import Lease, LeaseTable
from anole_memd.core.region import region_name
from anole_memd.errors import LeaseRefused, NoRegion
from anole_shared.errors import MessageError
from anole_shared.ids import LeaseId
from anole_shared.messages import (
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRequested,
    MemoryMessage,
    MemoryStatusReported,
    MemoryStatusRequested,
)
from anole_shared.telemetry import Attribute, SpanName, context_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes back to the connection that asked."""

    message: MemoryMessage
    descriptor: int | None = None
    """The granted region; it stays the lessor's, the receiver gets a copy."""


class Lessor:
    """Carries out what the lease table decides."""

    def __init__(
        self, table: LeaseTable, tracer: Tracer, create_region: Callable[[str, int], int]
    ) -> None:
        """create_region: name and size to a descriptor; OSError where the kernel has none."""
        self._table = table
        self._tracer = tracer
        self._create_region = create_region
        self._descriptors: dict[LeaseId, int] = {}

    def handle(self, owner: int, message: MemoryMessage) -> Answer:
        """Answer one message of the connection `owner`.

        Raises:
            MessageError: it is one that only memd sends.
        """
        match message:
            case LeaseRequested():
                return self._handle_request(owner, message)
            case LeaseReleased(lease_id=lease_id):
                lease = self._table.release(owner, lease_id)
                if lease is not None:
                    self._end(lease, "released")
                return Answer(message=LeaseEnded(lease_id=lease_id))
            case MemoryStatusRequested():
                return Answer(
                    message=MemoryStatusReported(
                        total_bytes=self._table.budget_bytes,
                        leased_bytes=self._table.leased_bytes,
                        num_leases=self._table.num_leases,
                    )
                )
            case _:
                raise MessageError(f"{message.type} is a message that only memd sends")

    def holder_gone(self, owner: int) -> None:
        """End every lease of a connection that is closed."""
        for lease in self._table.holder_gone(owner):
            self._end(lease, "holder gone")

    def _handle_request(self, owner: int, message: LeaseRequested) -> Answer:
        holder, purpose = region_name(message.holder), region_name(message.purpose)
        with self._tracer.start_as_current_span(
            SpanName.LEASE, context=context_of(message.headers), kind=SpanKind.SERVER
        ) as span:
            try:
                lease, descriptor = self._grant(owner, message.num_bytes, purpose)
            except LeaseRefused as refusal:
                span.set_attribute(Attribute.ERROR_TYPE, type(refusal).__name__)
                span.set_status(StatusCode.ERROR, str(refusal))
                log.warning("%s gets no region for %s: %s", holder, purpose, refusal)
                return Answer(message=LeaseDenied(reason=str(refusal)))
            span.set_attribute(Attribute.LEASE_BYTES, lease.num_bytes)
        log.info("%s: %d bytes to %s for %s", lease.lease_id, lease.num_bytes, holder, purpose)
        granted = LeaseGranted(lease_id=lease.lease_id, num_bytes=lease.num_bytes)
        return Answer(message=granted, descriptor=descriptor)

    def _grant(self, owner: int, num_bytes: int, name: str) -> tuple[Lease, int]:
        lease = self._table.grant(owner, num_bytes)
        try:
            descriptor = self._create_region(name, lease.num_bytes)
        except OSError as fault:
            self._table.release(owner, lease.lease_id)
            raise NoRegion(f"the kernel gave memd no region: {fault}") from fault
        self._descriptors[lease.lease_id] = descriptor
        return lease, descriptor

    def _end(self, lease: Lease, reason: str) -> None:
        os.close(self._descriptors.pop(lease.lease_id))
        log.info("%s: %d bytes back, %s", lease.lease_id, lease.num_bytes, reason)
