"""Requests that the broker still holds for us, and the spans of their waiting."""

from collections import Counter
from dataclasses import dataclass

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from anole_scheduler.core.predictor import Predictor
from anole_scheduler.core.residency import Residency
from anole_scheduler.tally import Tally, size_of
from anole_scheduler.translate import request_of
from anole_shared.bus import Delivery
from anole_shared.clock import Clock
from anole_shared.ids import GatewayId, RequestId, WorkerId
from anole_shared.messages import FailureCode, RequestSubmitted, Size
from anole_shared.telemetry import Attribute, SpanName, context_of, headers_of


@dataclass(slots=True, kw_only=True)
class Held:
    """One attempt whose delivery is not acknowledged yet."""

    submitted: RequestSubmitted
    deliveries: list[Delivery]
    """The newest last; the others came over connections that are gone."""
    span: Span
    size: Size
    arrived_s: float
    is_waiting: bool = True
    """Whether the span is open."""
    is_running: bool = False
    worker_id: WorkerId | None = None
    """The worker that got it last."""

    @property
    def headers(self) -> dict[str, str]:
        """What makes the worker's and the gateway's spans follow the wait."""
        return headers_of(self.span)


class Custody:
    """Keeps each delivery until its attempt is done; tells trace and tally how long it waited."""

    def __init__(self, tracer: Tracer, tally: Tally, predictor: Predictor, clock: Clock) -> None:
        self._tracer = tracer
        self._tally = tally
        self._predictor = predictor
        self._clock = clock
        self._held: dict[tuple[RequestId, int], Held] = {}
        self._num_of: Counter[GatewayId] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def gateways(self) -> list[GatewayId]:
        """Those that wait for something that is held."""
        return list(self._num_of)

    async def hold(
        self, delivery: Delivery, submitted: RequestSubmitted, queue_length: int
    ) -> None:
        """Keep a delivery.

        What the broker delivers again replaces the delivery it gave before. A second copy, which a
        gateway sends when it got no confirmation of the first, is not needed.
        """
        key = (submitted.request_id, submitted.attempt)
        held = self._held.get(key)
        if held is None:
            self._held[key] = self._begin(delivery, submitted, queue_length)
            self._num_of[submitted.gateway_id] += 1
        elif delivery.redelivered:
            held.deliveries.append(delivery)
        else:
            await delivery.ack()

    def _begin(self, delivery: Delivery, submitted: RequestSubmitted, queue_length: int) -> Held:
        request = request_of(submitted)
        size = size_of(request.num_prompt_tokens + self._predictor.predict(request))
        self._tally.waits(size)
        return Held(
            submitted=submitted,
            deliveries=[delivery],
            span=self._start_span(delivery, submitted, queue_length),
            size=size,
            arrived_s=self._clock.now(),
        )

    def wait_again(
        self, request_id: RequestId, attempt: int, worker_id: WorkerId, queue_length: int
    ) -> None:
        """The worker has given it back; a second such message says nothing of the next worker."""
        held = self._held.get((request_id, attempt))
        if held is None or held.is_waiting or held.worker_id != worker_id:
            return
        self._leave(held)
        held.span = self._start_span(held.deliveries[-1], held.submitted, queue_length)
        held.arrived_s, held.is_waiting = self._clock.now(), True
        self._tally.waits(held.size)

    def _start_span(
        self, delivery: Delivery, submitted: RequestSubmitted, queue_length: int
    ) -> Span:
        span = self._tracer.start_span(
            SpanName.QUEUE, context=context_of(delivery.headers), kind=SpanKind.CONSUMER
        )
        span.set_attribute(Attribute.REQUEST_ID, submitted.request_id)
        span.set_attribute(Attribute.ATTEMPT, submitted.attempt)
        span.set_attribute(Attribute.QUEUE_LENGTH, queue_length)
        if submitted.adapter_id is not None:
            span.set_attribute(Attribute.ADAPTER, submitted.adapter_id)
        return span

    def get(self, request_id: RequestId, attempt: int) -> Held:
        """What is held of an attempt that is not done."""
        return self._held[request_id, attempt]

    def admitted(
        self, request_id: RequestId, attempt: int, worker_id: WorkerId, residency: Residency | None
    ) -> None:
        """The wait is over; residency is that of its adapter at the worker, where known."""
        held = self._held[request_id, attempt]
        if held.is_waiting:
            held.span.set_attribute(Attribute.WORKER, worker_id)
            if residency is not None:
                held.span.set_attribute(Attribute.ADAPTER_HIT, residency is Residency.RESIDENT)
            self._tally.admitted(held.size, self._clock.now() - held.arrived_s, residency)
            self._end_wait(held)
            self._tally.runs()
            held.is_running, held.worker_id = True, worker_id

    def failed(self, request_id: RequestId, attempt: int, code: FailureCode, message: str) -> None:
        """There is no (further) answer; an error of the wait only if it still waited."""
        held = self._held[request_id, attempt]
        self._tally.failed(code)
        if held.is_waiting:
            held.span.set_attribute(Attribute.ERROR_TYPE, code)
            held.span.set_status(Status(StatusCode.ERROR, message))
            self._end_wait(held)

    async def done(self, request_id: RequestId, attempt: int) -> None:
        """Acknowledge: the broker may forget the request."""
        held = self._held.pop((request_id, attempt))
        self._leave(held)
        gateway_id = held.submitted.gateway_id
        self._num_of[gateway_id] -= 1
        if self._num_of[gateway_id] == 0:
            del self._num_of[gateway_id]
        for delivery in held.deliveries:
            await delivery.ack()

    def close(self) -> None:
        """Acknowledge nothing: what is held goes back to the broker for the next scheduler."""
        for held in self._held.values():
            self._leave(held)
        self._held.clear()
        self._num_of.clear()

    def _leave(self, held: Held) -> None:
        """It neither waits nor runs any more."""
        if held.is_waiting:
            self._end_wait(held)
        if held.is_running:
            held.is_running = False
            self._tally.runs_no_more()

    def _end_wait(self, held: Held) -> None:
        held.is_waiting = False
        held.span.end()
        self._tally.waits_no_more(held.size)
