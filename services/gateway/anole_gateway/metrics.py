"""What Prometheus can read: this gateway's requests, and workers and scheduler by the store.

Labels are bounded: a model is named only if it exists, and the histograms know just the kind of
model, because a histogram for each of hundreds of adapters would be tens of thousands of series.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from anole_gateway.scheduler_metrics import SchedulerMetrics
from anole_shared.messages import SchedulerRecord, WorkerRecord

# The buckets are those of OpenTelemetry's gen_ai.server.* metrics.
_TTFT_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_TPOT_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_DURATION_S = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
)  # fmt: skip

_KIND = ("operation", "kind")


class Metrics:
    """Everything that the gateway counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._workers = _Workers()
        self._registry.register(self._workers)
        self._schedulers = SchedulerMetrics()
        self._registry.register(self._schedulers)
        self.requests = Counter(
            "anole_gateway_requests",
            "HTTP requests answered; status 499: the client went away.",
            ("route", "model", "status"),
            registry=self._registry,
        )
        self.running = Gauge(
            "anole_gateway_requests_running",
            "Completions under way.",
            registry=self._registry,
        )
        self.aborted = Counter(
            "anole_gateway_requests_aborted",
            "Completions given up before the model was done.",
            ("reason",),
            registry=self._registry,
        )
        self.resubmitted = Counter(
            "anole_gateway_requests_resubmitted",
            "Completions handed in again because their worker or messages were lost.",
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "anole_gateway_prompt_tokens",
            "Tokens read.",
            ("model",),
            registry=self._registry,
        )
        self.generated_tokens = Counter(
            "anole_gateway_generated_tokens",
            "Tokens written.",
            ("model",),
            registry=self._registry,
        )
        self.duration = self._histogram(
            "anole_gateway_request_duration_seconds", "Whole completions.", _DURATION_S
        )
        self.ttft = self._histogram(
            "anole_gateway_time_to_first_token_seconds", "From request to first token.", _TTFT_S
        )
        self.tpot = self._histogram(
            "anole_gateway_time_per_output_token_seconds",
            "Mean time of each token after the first, by completion.",
            _TPOT_S,
        )

    def render(
        self, workers: Iterable[WorkerRecord], schedulers: Iterable[SchedulerRecord]
    ) -> bytes:
        """All metrics in Prometheus' text format."""
        self._workers.records = tuple(workers)
        self._schedulers.records = tuple(schedulers)
        return generate_latest(self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, documentation, _KIND, buckets=buckets, registry=self._registry)


class _Workers(Collector):
    """Gauges made from the records of the last reading."""

    def __init__(self) -> None:
        self.records: tuple[WorkerRecord, ...] = ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        running = _gauge("anole_worker_running_requests", "Requests that the worker holds.")
        blocks = _gauge("anole_worker_blocks", "KV blocks in the worker's pool.")
        free = _gauge("anole_worker_free_blocks", "KV blocks that are free.")
        resident = _gauge("anole_worker_resident_adapters", "Adapters in the worker's memory.")
        loading = _gauge("anole_worker_loading_adapters", "Adapters on their way there.")
        host = _gauge("anole_worker_host_adapters", "Adapters in its host's memory alone.")
        draining = _gauge("anole_worker_draining", "1 while it takes nothing more.")
        for record in self.records:
            labels = [record.worker_id]
            running.add_metric(labels, record.num_running)
            blocks.add_metric(labels, record.capacity.num_blocks)
            free.add_metric(labels, record.num_free_blocks)
            resident.add_metric(labels, len(record.resident))
            loading.add_metric(labels, len(record.loading))
            host.add_metric(labels, len(record.host))
            draining.add_metric(labels, float(record.draining))
        yield from (running, blocks, free, resident, loading, host, draining)


def _gauge(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=["worker"])
