"""What counts as unused, and as a place that was there but not used."""

from typing import Any

from anole_shared.ids import AdapterId
from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.eviction import Lru
from anole_worker.core.memory import Memory
from anole_worker.core.residency import AdapterCache
from bench.memory import BUDGET_BYTES, Churn, ledger_alone


def adapter(name: str, num_bytes: int) -> Adapter:
    return Adapter(adapter_id=AdapterId(name), generation="1", num_bytes=num_bytes, rank=8)


def memory(budget_bytes: int) -> Memory:
    return Memory(budget_bytes, 1, BlockPool(0), AdapterCache(Lru(60.0)))


def test_what_is_left_when_the_next_one_does_not_fit_is_unused() -> None:
    ledger, churn = memory(100), Churn(budget_bytes=100)
    for now, (name, size) in enumerate((("a", 60), ("b", 30), ("c", 20))):
        churn.claim(ledger, adapter(name, size), now)
        ledger.adapters.loaded(adapter(name, size))
    assert churn.unused == [0.1]
    assert (churn.num_loads, churn.num_evictions, churn.num_misplaced) == (3, 1, 0)


def test_something_that_goes_although_there_was_room_is_told() -> None:
    class Wasteful(Memory):
        def claim(self, adapter: Adapter, now: float, *_: Any, **__: Any) -> tuple[Adapter, ...]:
            super().claim(adapter, now)
            return (adapter,)

    ledger = Wasteful(100, 1, BlockPool(0), AdapterCache(Lru(60.0)))
    churn = Churn(budget_bytes=100)
    churn.claim(ledger, adapter("a", 10), 0)
    assert churn.num_misplaced == 1
    assert not churn.unused


def test_the_real_ledger_uses_all_the_room_there_is() -> None:
    known = [adapter(f"a{i}", BUDGET_BYTES // (20 + i)) for i in range(60)]
    churn = ledger_alone(known, BUDGET_BYTES // 1000, 300)
    assert churn.num_loads == 300
    assert churn.num_evictions > 100
    assert churn.num_misplaced == 0
    assert max(churn.unused) < 1 / 20
