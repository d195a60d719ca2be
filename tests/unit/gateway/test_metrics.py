"""Prometheus' view: bounded labels, standard buckets."""

from anole_gateway.metrics import Metrics


def lines_of(metrics: Metrics) -> list[str]:
    return metrics.render([]).decode().splitlines()


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
