"""What only the in-process store promises; the rest is in tests/contract."""

import pytest

from anole_shared.keys import Collection
from anole_shared.store_memory import MemoryStore
from tests.clocks import HandClock


@pytest.mark.parametrize(("age_s", "is_there"), [(9.999, True), (10.0, False), (10.001, False)])
async def test_a_record_lapses_exactly_when_its_time_is_over(age_s: float, is_there: bool) -> None:
    clock = HandClock()
    store = MemoryStore(clock)
    await store.put(Collection.WORKERS, "w1", b"1", ttl_s=10.0)
    clock.time_s += age_s
    assert (await store.get(Collection.WORKERS, "w1") is not None) is is_there


async def test_lapsed_records_take_no_memory() -> None:
    clock = HandClock()
    store = MemoryStore(clock)
    for number in range(100):
        await store.put(Collection.WORKERS, f"w{number}", b"1", ttl_s=1.0)
        clock.time_s += 1.0
    assert len(store._collections[Collection.WORKERS]) == 1
