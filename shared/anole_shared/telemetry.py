"""Traces: the names of every span and attribute, and how a trace crosses the bus.

Each service has a tracer of its own, so that four services in one process still show as four. The
trace context travels in message headers as W3C traceparent (https://www.w3.org/TR/trace-context/).
Attribute names follow OpenTelemetry's GenAI conventions (gen_ai.*); what has no name there bears
the prefix anole.
"""

from collections.abc import Mapping
from enum import StrEnum

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator


class SpanName(StrEnum):
    """Every span that Anole makes. One request's trace reads from top to bottom like this."""

    REQUEST = "request"
    """gateway, SERVER: HTTP request to last byte. Named "<operation> <model>" once known."""
    TOKENIZE = "tokenize"
    """gateway: template and tokenizer."""
    SUBMIT = "submit"
    """gateway, PRODUCER: handing the request to the bus."""
    QUEUE = "queue"
    """scheduler, CONSUMER: from arrival to admission (or refusal)."""
    SEQUENCE = "sequence"
    """worker, CONSUMER: from admission to the last token."""
    ADAPTER_WAIT = "adapter.wait"
    """worker: the sequence waits for its adapter's weights; absent when they are resident."""
    ADAPTER_LOAD = "adapter.load"
    """worker: reading one adapter into a leased region."""
    PREFILL = "prefill"
    """worker: from the first prompt chunk to the first token."""
    DECODE = "decode"
    """worker: from the first token to the last."""
    LEASE = "lease"
    """memd, SERVER: granting one region."""
    PLUG = "region.plug"
    """memd: the backend gives a region its memory."""
    UNPLUG = "region.unplug"
    """memd: the backend takes a region's memory away."""
    REVOKE = "lease.revoke"
    """memd: from asking a holder for memory back until it has answered or is too late."""


class Attribute(StrEnum):
    """Every span attribute that Anole sets."""

    OPERATION = "gen_ai.operation.name"
    PROVIDER = "gen_ai.provider.name"
    REQUEST_MODEL = "gen_ai.request.model"
    RESPONSE_MODEL = "gen_ai.response.model"
    RESPONSE_ID = "gen_ai.response.id"
    MAX_TOKENS = "gen_ai.request.max_tokens"
    TEMPERATURE = "gen_ai.request.temperature"
    TOP_P = "gen_ai.request.top_p"
    SEED = "gen_ai.request.seed"
    STREAM = "gen_ai.request.stream"
    FINISH_REASONS = "gen_ai.response.finish_reasons"
    TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
    INPUT_TOKENS = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
    CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
    HTTP_METHOD = "http.request.method"
    HTTP_ROUTE = "http.route"
    HTTP_STATUS = "http.response.status_code"
    ERROR_TYPE = "error.type"
    BASE_MODEL = "anole.base_model"
    ADAPTER = "anole.adapter.id"
    ADAPTER_RANK = "anole.adapter.rank"
    ADAPTER_BYTES = "anole.adapter.bytes"
    ADAPTER_HIT = "anole.adapter.hit"
    """Whether the adapter was resident when the sequence was admitted."""
    PREEMPTIONS = "anole.sequence.preemptions"
    """How often it had to wait again because older ones needed its memory."""
    REQUEST_ID = "anole.request.id"
    ATTEMPT = "anole.request.attempt"
    WORKER = "anole.worker.id"
    QUEUE_LENGTH = "anole.queue.length"
    LEASE_BYTES = "anole.lease.bytes"
    REGION_ID = "anole.region.id"
    REGION_BYTES = "anole.region.bytes"
    REVOKED_BYTES = "anole.revoked.bytes"
    """What came back of what was asked back."""


PROVIDER = "anole"
"""Value of gen_ai.provider.name."""

_propagator = TraceContextTextMapPropagator()


class Telemetry:
    """One service's tracer and where its spans go."""

    def __init__(
        self,
        service: str,
        *,
        instance_id: str = "",
        endpoint: str | None = None,
        exporter: SpanExporter | None = None,
    ) -> None:
        """endpoint: base URL of an OTLP/HTTP collector. exporter: for tests, instead of it.

        With neither, spans are not recorded (and cost next to nothing), but trace ids still travel.
        """
        resource = Resource.create(
            {SERVICE_NAME: f"anole-{service}", SERVICE_INSTANCE_ID: instance_id or service}
        )
        recording = endpoint is not None or exporter is not None
        self._provider = TracerProvider(
            resource=resource,
            sampler=ParentBased(ALWAYS_ON) if recording else ALWAYS_OFF,
            shutdown_on_exit=False,
        )
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        elif endpoint is not None:
            otlp = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces", timeout=5)
            self._provider.add_span_processor(BatchSpanProcessor(otlp, schedule_delay_millis=1000))
        self.tracer: Tracer = self._provider.get_tracer("anole")

    def shutdown(self) -> None:
        """Send what is left; blocks for some seconds where the collector is gone."""
        self._provider.shutdown()


def headers_of(span: Span) -> dict[str, str]:
    """The headers that make whoever receives them continue span's trace."""
    headers: dict[str, str] = {}
    _propagator.inject(headers, context=set_span_in_context(span))
    return headers


def context_of(headers: Mapping[str, str]) -> Context:
    """The trace context in a message's headers; an empty one starts a new trace."""
    return _propagator.extract(dict(headers), context=Context())


def child_of(span: Span) -> Context:
    """The context in which a new span becomes a child of span."""
    return set_span_in_context(span, Context())
