"""Prometheus' view: bounded labels, standard buckets."""

from anole_gateway.metrics import Metrics
from anole_shared.messages import SchedulerRecord, Size, SizeRecord


def lines_of(metrics: Metrics) -> list[str]:
    return metrics.render([], []).decode().splitlines()


def test_buckets_are_those_of_the_genai_conventions() -> None:
    metrics = Metrics()
    for histogram in (metrics.ttft, metrics.tpot, metrics.duration):
        histogram.labels("chat", "base").observe(0.5)
    lines = lines_of(metrics)

    def edges(name: str) -> list[float]:
        prefix = f'anole_gateway_{name}_seconds_bucket{{kind="base",le="'
        return [
            float(line.removeprefix(prefix).split('"')[0])
            for line in lines
            if line.startswith(prefix)
        ]

    assert (edges("time_to_first_token")[0], edges("time_to_first_token")[-2]) == (0.001, 10)
    assert (edges("time_per_output_token")[0], edges("time_per_output_token")[-2]) == (0.01, 2.5)
    assert (edges("request_duration")[0], edges("request_duration")[-2]) == (0.01, 81.92)


def test_two_gateways_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.resubmitted.inc()
    assert "anole_gateway_requests_resubmitted_total 1.0" in lines_of(first)
    assert "anole_gateway_requests_resubmitted_total 0.0" in lines_of(second)


def test_the_schedulers_figures_are_shown_as_it_wrote_them() -> None:
    small = SizeRecord(
        size=Size.SMALL, num_waiting=3, num_admitted=6, wait_sum_s=7.5, wait_counts=(1, 2, 3)
    )
    record = SchedulerRecord(
        scheduler_id="s1",
        num_running=2,
        sizes=(small,),
        wait_bounds_s=(0.5, 1.0),
        failed={"queue_full": 4},
        num_adapter_lookups=9,
        num_adapter_hits=8,
        num_learnt=100,
        share_in_class=0.75,
        share_within_factor_2=0.5,
    )
    lines = Metrics().render([], [record]).decode().splitlines()
    of_small = 'scheduler="s1",size="small"'
    for line in (
        f"anole_scheduler_requests_waiting{{{of_small}}} 3.0",
        f"anole_scheduler_requests_admitted_total{{{of_small}}} 6.0",
        f'anole_scheduler_queue_time_seconds_bucket{{le="0.5",{of_small}}} 1.0',
        f'anole_scheduler_queue_time_seconds_bucket{{le="1.0",{of_small}}} 3.0',
        f'anole_scheduler_queue_time_seconds_bucket{{le="+Inf",{of_small}}} 6.0',
        f"anole_scheduler_queue_time_seconds_count{{{of_small}}} 6.0",
        f"anole_scheduler_queue_time_seconds_sum{{{of_small}}} 7.5",
        'anole_scheduler_requests_running{scheduler="s1"} 2.0',
        'anole_scheduler_requests_failed_total{code="queue_full",scheduler="s1"} 4.0',
        'anole_scheduler_adapter_lookups_total{scheduler="s1"} 9.0',
        'anole_scheduler_adapter_hits_total{scheduler="s1"} 8.0',
        'anole_scheduler_predictor_answers_total{scheduler="s1"} 100.0',
        'anole_scheduler_predictor_accuracy{measure="class",scheduler="s1"} 0.75',
        'anole_scheduler_predictor_accuracy{measure="factor_2",scheduler="s1"} 0.5',
    ):
        assert line in lines, line
