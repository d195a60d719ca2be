"""Arrivals, lengths and adapters."""

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, pstdev

import pytest

from anole_shared.errors import ConfigurationError
from anole_sim import traces
from anole_sim.workload import SYNTHETIC, Plan, make


def gaps(plan: Plan) -> list[float]:
    times = [ask.arrival_s for ask in make(plan).asks]
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("cv", [1.0, 4.0])
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(cv: float) -> None:
    found = gaps(Plan(rate=20.0, duration_s=3000.0, cv=cv))
    assert mean(found) == pytest.approx(1 / 20, rel=0.1)
    assert pstdev(found) / mean(found) == pytest.approx(cv, rel=0.1)


def test_without_a_trace_lengths_have_its_median_and_scale() -> None:
    asks = make(Plan(rate=20.0, duration_s=500.0)).asks
    shape = SYNTHETIC["azure-conv"]
    assert median(ask.input_tokens for ask in asks) == pytest.approx(shape.input_p50, rel=0.1)
    small = make(Plan(rate=20.0, duration_s=500.0, scale=1 / 6)).asks
    assert median(ask.output_tokens for ask in small) == pytest.approx(129 / 6, rel=0.1)


def test_popularity_is_a_power_law_within_each_rank_or_none() -> None:
    asked = Counter(ask.adapter for ask in make(Plan(rate=50.0, duration_s=1000.0)).asks)
    work = make(Plan(rate=50.0, duration_s=1000.0))
    by_rank = Counter(work.ranks[ask.adapter] for ask in work.asks)
    assert by_rank[8] == pytest.approx(by_rank[128], rel=0.1)
    assert asked[0] == pytest.approx(2 * asked[5], rel=0.2)
    even = Counter(
        ask.adapter for ask in make(Plan(rate=50.0, duration_s=1000.0, popularity="uniform")).asks
    )
    assert max(even.values()) < 1.5 * min(even.values())


def test_no_adapters_means_the_base_model() -> None:
    work = make(Plan(num_adapters=0, duration_s=10.0))
    assert {ask.adapter for ask in work.asks} == {-1}


def test_a_trace_keeps_its_own_times_at_rate_0(tmp_path: Path) -> None:
    trace = tmp_path / "mine.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n5,10,2\n7.5,20,3\n")
    work = make(Plan(trace=str(trace), folder=tmp_path, rate=0))
    assert [ask.arrival_s for ask in work.asks] == [0.0, 2.5]
    assert [(ask.input_tokens, ask.output_tokens) for ask in work.asks] == [(10, 2), (20, 3)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"),
        ("b.jsonl", '{"timestamp": 27482, "input_length": 374, "output_length": 44}\n'),
        ("c.csv", "Timestamp,Model,Request tokens,Response tokens\n5,ChatGPT,374,44\n"),
        ("d.csv", "num_prefill_tokens,num_decode_tokens\n374,44\n"),
    ],
)
def test_published_traces_are_read_as_they_are(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        assert traces.read(path) == (traces.Lengths(0.0, 374, 44),)


def test_the_production_order_is_kept_and_its_shuffle_is_not(tmp_path: Path) -> None:
    (tmp_path / "lora_ids.csv").write_text("lora\n" + "\n".join("aaabbbbbc"))
    (tmp_path / "azure2023_conv.csv.gz").write_bytes(
        gzip.compress(b"arrival_s,input_tokens,output_tokens\n0,10,2\n")
    )
    plan = Plan(folder=tmp_path, popularity="gentd26", duration_s=20.0)
    asked = [ask.adapter for ask in make(plan).asks]
    changes = sum(one != other for one, other in pairwise(asked))
    assert changes == pytest.approx(len(asked) / 3, rel=0.1)


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no trace"):
        make(Plan(trace="nothing"))
    with pytest.raises(ConfigurationError, match="ANOLE_TRACES"):
        make(Plan(trace="gentd26", rate=0))
    with pytest.raises(ConfigurationError, match="no popularity"):
        make(Plan(popularity="odd"))
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="no columns"):
        traces.read(tmp_path / "x.csv")
