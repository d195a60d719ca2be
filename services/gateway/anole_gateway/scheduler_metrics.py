"""The scheduler's figures as it shows them in the store, for Prometheus.

A scheduler listens on no port. Like the workers' figures these are at every gateway, the same
ones, and up to some seconds old.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from anole_shared.messages import SchedulerRecord

_PREFIX = "anole_scheduler_"


class SchedulerMetrics(Collector):
    """Made from the records of the last reading: of one scheduler, but for a take-over."""

    def __init__(self) -> None:
        self.records: tuple[SchedulerRecord, ...] = ()

    def collect(self) -> Iterator[Metric]:
        yield from self._waits()
        yield from self._totals()
        yield from self._predictions()

    def _waits(self) -> Iterator[Metric]:
        labels = ["scheduler", "size"]
        waiting = GaugeMetricFamily(
            _PREFIX + "requests_waiting",
            "Requests that no worker has; small: up to 512 tokens, prompt and expected output "
            "together; medium: up to 2048.",
            labels=labels,
        )
        admitted = CounterMetricFamily(
            _PREFIX + "requests_admitted", "Requests given to a worker.", labels=labels
        )
        waits = HistogramMetricFamily(
            _PREFIX + "queue_time_seconds", "From arrival to admission.", labels=labels
        )
        for record in self.records:
            bounds = [*map(str, record.wait_bounds_s), "+Inf"]
            for size in record.sizes:
                values = [record.scheduler_id, size.size]
                waiting.add_metric(values, size.num_waiting)
                admitted.add_metric(values, size.num_admitted)
                buckets = list(zip(bounds, _cumulative(size.wait_counts), strict=True))
                waits.add_metric(values, buckets, size.wait_sum_s)
        yield from (waiting, admitted, waits)

    def _totals(self) -> Iterator[Metric]:
        running = GaugeMetricFamily(
            _PREFIX + "requests_running", "Requests that workers have.", labels=["scheduler"]
        )
        failed = CounterMetricFamily(
            _PREFIX + "requests_failed",
            "Requests that got no (further) answer; gateways send worker_lost again.",
            labels=["scheduler", "code"],
        )
        lookups = CounterMetricFamily(
            _PREFIX + "adapter_lookups", "Admissions with an adapter.", labels=["scheduler"]
        )
        hits = CounterMetricFamily(
            _PREFIX + "adapter_hits",
            "Those where the adapter was resident at the worker.",
            labels=["scheduler"],
        )
        for record in self.records:
            labels = [record.scheduler_id]
            running.add_metric(labels, record.num_running)
            for code, count in record.failed.items():
                failed.add_metric([*labels, code], count)
            lookups.add_metric(labels, record.num_adapter_lookups)
            hits.add_metric(labels, record.num_adapter_hits)
        yield from (running, failed, lookups, hits)

    def _predictions(self) -> Iterator[Metric]:
        learnt = CounterMetricFamily(
            _PREFIX + "predictor_answers",
            "Answers from which output lengths were learnt.",
            labels=["scheduler"],
        )
        accuracy = GaugeMetricFamily(
            _PREFIX + "predictor_accuracy",
            "Share of recent predictions of output length in the right class (up to 141 tokens, "
            "up to 503, longer), and within a factor of 2.",
            labels=["scheduler", "measure"],
        )
        for record in self.records:
            labels = [record.scheduler_id]
            learnt.add_metric(labels, record.num_learnt)
            accuracy.add_metric([*labels, "class"], record.share_in_class)
            accuracy.add_metric([*labels, "factor_2"], record.share_within_factor_2)
        yield from (learnt, accuracy)


def _cumulative(counts: Sequence[int]) -> list[float]:
    return [float(count) for count in accumulate(counts)]
