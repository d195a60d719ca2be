"""One worker's budget of bytes."""

from anole_scheduler.core.memory import Budget, Capacity, Charge

A, ALSO_A, BASE = Charge(2, "a", 100), Charge(3, "a", 100), Charge(1, None, 0)


def test_an_adapter_is_counted_once_however_many_share_it() -> None:
    budget = Budget(block_bytes=10)
    assert budget.needed(A) == 120
    budget.take(A)
    assert budget.needed(ALSO_A) == 30
    budget.take(ALSO_A)
    budget.take(BASE)
    assert budget.used_bytes == 160
    budget.check_invariants()
    assert budget.freed(A) == 20
    budget.give_back(A)
    assert budget.freed(ALSO_A) == 130
    budget.give_back(ALSO_A)
    assert budget.used_bytes == 10
    assert not budget.is_used("a")
    budget.check_invariants()


def test_an_adapter_takes_from_the_longest_request() -> None:
    capacity = Capacity(
        max_num_seqs=1, block_size=16, block_bytes=10, memory_bytes=105, max_model_len=100
    )
    assert capacity.num_blocks == 10
    assert capacity.num_tokens == 160
    assert [capacity.longest(size) for size in (0, 50, 99, 106)] == [100, 80, 0, 0]
