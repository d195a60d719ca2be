"""The spans of one sequence on this worker: waiting for its adapter, prefill, decode."""

from collections.abc import Mapping

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from anole_shared.ids import WorkerId
from anole_shared.telemetry import Attribute, SpanName, child_of, context_of, headers_of
from anole_worker.core.sequence import Sequence


class SequenceSpans:
    """Opens and closes a sequence's spans as it goes through its phases."""

    def __init__(
        self,
        tracer: Tracer,
        headers: Mapping[str, str],
        sequence: Sequence,
        worker_id: WorkerId,
        *,
        is_hit: bool,
    ) -> None:
        """headers: of the message that brought the sequence. is_hit: its adapter was resident."""
        self._tracer = tracer
        self._span = tracer.start_span(
            SpanName.SEQUENCE, context=context_of(headers), kind=SpanKind.CONSUMER
        )
        self._span.set_attributes(
            {
                Attribute.REQUEST_ID: sequence.request_id,
                Attribute.ATTEMPT: sequence.attempt,
                Attribute.WORKER: worker_id,
                Attribute.INPUT_TOKENS: sequence.num_given_tokens,
                Attribute.MAX_TOKENS: sequence.max_tokens,
            }
        )
        self._part: Span | None = None
        self._has_started = False
        if sequence.adapter is not None:
            self._span.set_attribute(Attribute.ADAPTER, sequence.adapter.adapter_id)
            self._span.set_attribute(Attribute.ADAPTER_HIT, is_hit)
            if not is_hit:
                self._next(SpanName.ADAPTER_WAIT)

    @property
    def headers(self) -> dict[str, str]:
        """What makes a receiver's spans children of this sequence's."""
        return headers_of(self._span)

    def in_step(self) -> None:
        """The sequence is part of the step that begins."""
        if not self._has_started:
            self._has_started = True
            self._next(SpanName.PREFILL)

    def token(self, num_output_tokens: int) -> None:
        """A token was drawn for it."""
        if num_output_tokens == 1:
            self._span.add_event("first_token")
            self._next(SpanName.DECODE)

    def end(self, sequence: Sequence, reason: str, error: str | None = None) -> None:
        """The sequence has ended; error says what broke, if something did."""
        if self._part is not None:
            self._part.end()
        self._span.set_attribute(Attribute.OUTPUT_TOKENS, sequence.num_output_tokens)
        self._span.set_attribute(Attribute.CACHED_TOKENS, sequence.num_cached_tokens)
        self._span.set_attribute(Attribute.PREEMPTIONS, sequence.num_preemptions)
        self._span.set_attribute(Attribute.FINISH_REASONS, [reason])
        if error is not None:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()

    def _next(self, name: SpanName) -> None:
        if self._part is not None:
            self._part.end()
        self._part = self._tracer.start_span(name, context=child_of(self._span))
