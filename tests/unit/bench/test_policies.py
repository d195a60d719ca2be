"""The simulated requests drive the real ledger, and what is counted is what happened."""

import itertools
from collections import Counter

import pytest

from anole_shared.ids import AdapterId
from anole_worker.core import eviction
from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import EvictionPolicy
from bench.policies import (
    HOLD_S,
    LOAD_BYTES_PER_S,
    LOAD_S,
    POPULARITIES,
    WINDOW_S,
    Clairvoyant,
    Request,
    make_requests,
    replay,
)

MB = 10**6


def adapters(count: int, num_bytes: int = MB) -> list[Adapter]:
    return [
        Adapter(adapter_id=AdapterId(f"a{i:02}"), generation="1", num_bytes=num_bytes, rank=8)
        for i in range(count)
    ]


def requests(names: str, every_s: float = 10 * HOLD_S) -> list[Request]:
    known = dict(zip("abcdef", adapters(6), strict=True))
    return [
        Request(arrival_s=index * every_s, adapter=known[name]) for index, name in enumerate(names)
    ]


def lru() -> EvictionPolicy:
    return eviction.by_name(WINDOW_S)["lru"]


def test_hits_and_loads_are_counted_after_the_first_requests() -> None:
    # A fifth of ten fills the memory: a and b. Then of two places c takes a's, a takes b's.
    outcome = replay(lru(), 2 * MB, requests("abbcbbabba"))
    assert (outcome.num_requests, outcome.num_hits, outcome.loaded_bytes) == (8, 6, 2 * MB)


def test_a_hit_does_not_wait_and_a_miss_waits_for_its_load() -> None:
    outcome = replay(lru(), 2 * MB, requests("aaaaab"))
    assert outcome.wait_s == pytest.approx(LOAD_S + MB / LOAD_BYTES_PER_S)


def test_who_finds_all_memory_held_waits_until_some_is_given_back() -> None:
    first, second = requests("ab", every_s=0.5)
    outcome = replay(lru(), MB, [first, first, first, second, second])
    assert outcome.num_hits == 3
    assert outcome.wait_s > 2 * (HOLD_S - 0.5)


def test_the_clairvoyant_keeps_what_is_needed_next() -> None:
    wanted = requests("ab" + "cab" * 10)
    found = replay(Clairvoyant(wanted), 2 * MB, wanted)
    assert found.num_hits > replay(lru(), 2 * MB, wanted).num_hits == 0


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_the_same_seed_makes_the_same_requests(popularity: str) -> None:
    known = adapters(20)
    first, second, other = (make_requests(known, popularity, 200, seed) for seed in (1, 1, 2))
    assert first == second != other
    assert all(a.arrival_s < b.arrival_s for a, b in itertools.pairwise(first))


def most_wanted(found: list[Request]) -> tuple[str, int]:
    return Counter(request.adapter.adapter_id for request in found).most_common(1)[0]


def test_with_zipf_one_adapter_is_wanted_far_more_often_than_others() -> None:
    known = adapters(50)
    assert most_wanted(make_requests(known, "zipf", 2000, 1))[1] > 350
    assert most_wanted(make_requests(known, "uniform", 2000, 1))[1] < 100


def test_with_shifting_popularity_it_is_another_one_later() -> None:
    found = make_requests(adapters(50), "shifting", 2000, 1)
    assert most_wanted(found[:300])[0] != most_wanted(found[-300:])[0]
    zipf = make_requests(adapters(50), "zipf", 2000, 1)
    assert most_wanted(zipf[:300])[0] == most_wanted(zipf[-300:])[0]
