"""One completion as its operator sees it: the span, the times, the counts."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from aiohttp import web
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from anole_gateway.errors import ApiError, InternalFailure
from anole_gateway.metrics import Metrics
from anole_gateway.registry import Model
from anole_gateway.replies import Reply
from anole_shared.clock import Clock
from anole_shared.messages import RequestSubmitted
from anole_shared.telemetry import PROVIDER, Attribute, SpanName, child_of, context_of

CLIENT_GONE = "client_disconnected"
"""error.type of a completion whose client did not wait for it."""


class Exchange:
    """Open from a completion's HTTP request to its last byte; leaving it records how it went."""

    def __init__(
        self,
        http_request: web.Request,
        operation: str,
        *,
        tracer: Tracer,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._tracer = tracer
        self._metrics = metrics
        self._clock = clock
        self._operation = operation
        self._started_s = clock.now()
        self._first_token_s: float | None = None
        self._model: Model | None = None
        self.span: Span = tracer.start_span(
            SpanName.REQUEST,
            context=context_of(
                {name.lower(): value for name, value in http_request.headers.items()}
            ),
            kind=SpanKind.SERVER,
            attributes={
                Attribute.HTTP_METHOD: http_request.method,
                Attribute.HTTP_ROUTE: http_request.path,
                Attribute.OPERATION: operation,
                Attribute.PROVIDER: PROVIDER,
            },
        )

    def __enter__(self) -> Self:
        self._metrics.running.inc()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._metrics.running.dec()
        match fault:
            case None:
                pass
            case ApiError():
                self.fail(fault)
            case asyncio.CancelledError() | ConnectionError():
                self.disconnected()
            case _:
                self.fail(InternalFailure(type(fault).__name__))
        if self._model is not None:
            duration_s = self._clock.now() - self._started_s
            self._metrics.duration.labels(*self._labels).observe(duration_s)
        self.span.end()

    @contextmanager
    def step(self, name: SpanName) -> Iterator[Span]:
        """A child span around the context."""
        with self._tracer.start_as_current_span(name, context=child_of(self.span)) as span:
            yield span

    def accepted(
        self, model: Model, order: RequestSubmitted, reply: Reply, *, base: str, is_stream: bool
    ) -> None:
        """The request is understood and about to be submitted."""
        self._model = model
        self.span.update_name(f"{self._operation} {model.name}")
        self.span.set_attributes(
            {
                Attribute.REQUEST_MODEL: model.name,
                Attribute.RESPONSE_MODEL: model.name,
                Attribute.RESPONSE_ID: reply.reply_id,
                Attribute.BASE_MODEL: base,
                Attribute.REQUEST_ID: order.request_id,
                Attribute.MAX_TOKENS: order.max_tokens,
                Attribute.TEMPERATURE: order.sampling.temperature,
                Attribute.TOP_P: order.sampling.top_p,
                Attribute.SEED: order.sampling.seed,
                Attribute.STREAM: is_stream,
                Attribute.INPUT_TOKENS: len(order.prompt_token_ids),
            }
        )
        if model.adapter is not None:
            self.span.set_attribute(Attribute.ADAPTER, model.adapter.adapter_id)
            self.span.set_attribute(Attribute.ADAPTER_RANK, model.adapter.rank)
        self._metrics.prompt_tokens.labels(model.name).inc(len(order.prompt_token_ids))

    def progress(self, num_output_tokens: int) -> None:
        """So many tokens have come so far."""
        if self._first_token_s is not None or num_output_tokens == 0:
            return
        self._first_token_s = self._clock.now()
        ttft_s = self._first_token_s - self._started_s
        self.span.add_event("first_token")
        self.span.set_attribute(Attribute.TIME_TO_FIRST_CHUNK, ttft_s)
        self._metrics.ttft.labels(*self._labels).observe(ttft_s)

    def generated(
        self, nums_output_tokens: Sequence[int], finish_reasons: Sequence[str | None]
    ) -> None:
        """No more tokens come for any choice; without a finish_reason, because of a failure."""
        num_output_tokens = sum(nums_output_tokens)
        self.span.set_attribute(Attribute.OUTPUT_TOKENS, num_output_tokens)
        if self._model is not None:
            self._metrics.generated_tokens.labels(self._model.name).inc(num_output_tokens)
        reasons = [reason for reason in finish_reasons if reason is not None]
        if len(reasons) < len(finish_reasons):
            return
        self.span.set_attribute(Attribute.FINISH_REASONS, reasons)
        self.span.set_attribute(Attribute.HTTP_STATUS, web.HTTPOk.status_code)
        longest = max(nums_output_tokens)
        if self._first_token_s is not None and longest > 1:
            tpot_s = (self._clock.now() - self._first_token_s) / (longest - 1)
            self._metrics.tpot.labels(*self._labels).observe(tpot_s)

    def fail(self, error: ApiError) -> None:
        """The client gets this error."""
        # A client's mistake is no error of a server's span:
        # https://opentelemetry.io/docs/specs/semconv/http/http-spans/#status
        self.span.set_attribute(Attribute.ERROR_TYPE, error.code)
        self.span.set_attribute(Attribute.HTTP_STATUS, error.status)
        if error.status >= web.HTTPInternalServerError.status_code:
            self.span.set_status(Status(StatusCode.ERROR, error.message))

    def disconnected(self) -> None:
        """The client did not wait."""
        self.span.set_attribute(Attribute.ERROR_TYPE, CLIENT_GONE)

    @property
    def _labels(self) -> tuple[str, str]:
        is_adapter = self._model is not None and self._model.adapter is not None
        return self._operation, "adapter" if is_adapter else "base"
