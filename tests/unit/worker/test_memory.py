"""One budget for blocks and adapters: what goes, in which order, and no more than is needed."""

import pytest

from anole_worker.core.adapter import Adapter
from anole_worker.core.blocks import BlockPool
from anole_worker.core.eviction import Lru
from anole_worker.core.memory import NOBODY, Memory, Wanted
from anole_worker.core.prefix import extend, root
from anole_worker.core.residency import AdapterCache, Residency
from tests.unit.worker.engines import adapter, make_memory

A, B, C, D = (adapter(name, num_bytes=10) for name in "abcd")


def resident(memory: Memory, of: Adapter, used_s: float) -> None:
    assert memory.claim_unused(of)
    memory.adapters.loaded(of)
    memory.adapters.used(of, used_s)


def cached(memory: Memory, token: int, since_s: float, of: Adapter | None = None) -> int:
    """A block that holds a known token and that nobody owns."""
    assert memory.make_room(1, since_s)
    block = memory.take_block()
    memory.blocks.publish(block, extend(root(of), [token]))
    memory.blocks.release([block], since_s)
    return block


def take(memory: Memory, num_blocks: int, now: float, wanted: Wanted = NOBODY) -> list[int] | None:
    if not memory.make_room(num_blocks, now, wanted):
        return None
    return [memory.take_block() for _ in range(num_blocks)]


def what_goes(memory: Memory, now: float, wanted: Wanted = NOBODY) -> list[str]:
    """In which order all that can go goes, block by block."""
    order: list[str] = []
    while True:
        cached_before = memory.blocks.num_cached
        if take(memory, 1, now, wanted) is None:
            return order
        memory.check_invariants()
        order += [each.adapter_id for each in memory.collect_evicted()]
        order += ["block"] * (cached_before - memory.blocks.num_cached)


def state(memory: Memory) -> tuple[object, ...]:
    blocks = memory.blocks
    return (
        blocks.num_bare,
        blocks.num_free,
        blocks.num_cached,
        memory.used_bytes,
        memory.adapters.adapters(Residency.RESIDENT),
        memory.collect_evicted(),
        memory.collect_stripped(),
    )


def test_nothing_goes_while_there_is_memory_that_nobody_uses() -> None:
    memory = make_memory(budget_bytes=40, block_bytes=10)
    resident(memory, A, used_s=0)
    cached(memory, 1, since_s=0)
    blocks = take(memory, 2, now=1)
    assert blocks is not None
    assert (memory.unused_bytes, memory.collect_evicted()) == (0, ())
    memory.blocks.release(blocks, 1)
    assert take(memory, 2, now=2) is not None
    assert memory.blocks.num_cached == 1
    assert memory.adapters.residency(A) is Residency.RESIDENT


def test_of_what_nobody_waits_for_the_longer_idle_goes_first_be_it_block_or_adapter() -> None:
    memory = make_memory(budget_bytes=50, block_bytes=10)
    cached(memory, 1, since_s=1)
    resident(memory, A, used_s=2)
    cached(memory, 2, since_s=3)
    resident(memory, B, used_s=4)
    cached(memory, 3, since_s=5)
    assert what_goes(memory, now=6) == ["block", "a", "block", "b", "block"]


def test_what_waiting_requests_need_goes_last_whatever_its_age() -> None:
    memory = make_memory(budget_bytes=50, block_bytes=10)
    for now, each in enumerate((A, B, C)):
        resident(memory, each, used_s=now)
    cached(memory, 1, since_s=8)
    cached(memory, 2, since_s=9)
    wanted = Wanted(waiting={A}, hinted={B})
    assert what_goes(memory, now=10, wanted=wanted) == ["c", "block", "block", "b", "a"]


def test_of_what_waiting_requests_need_the_last_in_line_goes_first() -> None:
    memory = make_memory(budget_bytes=40, block_bytes=10)
    for now, each in enumerate((A, B, C, D)):
        resident(memory, each, used_s=now)
    wanted = Wanted(waiting=[C, A, D], hinted={A, B})
    assert what_goes(memory, now=10, wanted=wanted) == ["b", "d", "a", "c"]


def test_what_is_kept_pinned_or_being_loaded_never_goes() -> None:
    memory = make_memory(budget_bytes=40, block_bytes=10)
    resident(memory, A, used_s=0)
    resident(memory, B, used_s=0)
    memory.adapters.pin(B)
    resident(memory, C, used_s=1)
    assert memory.claim_unused(D)
    assert what_goes(memory, now=2, wanted=Wanted(kept={A}, waiting={A})) == ["c"]
    assert what_goes(memory, now=2) == ["a"]
    assert what_goes(memory, now=2) == []


def test_a_replaced_adapter_goes_before_everything_else() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=10)
    cached(memory, 1, since_s=1)
    resident(memory, A, used_s=2)
    resident(memory, B, used_s=3)
    memory.adapters.retire(B)
    assert what_goes(memory, now=4) == ["b", "block", "a"]


def test_keys_and_values_of_an_adapter_that_has_gone_are_forgotten_first() -> None:
    memory = make_memory(budget_bytes=40, block_bytes=10)
    old = cached(memory, 1, since_s=2)
    resident(memory, A, used_s=1)
    of_a = cached(memory, 2, since_s=3, of=A)
    resident(memory, B, used_s=9)
    assert memory.claim(C, 10) == (A,)
    assert take(memory, 1, now=10) == [of_a]
    assert take(memory, 1, now=10) == [old]


def test_only_so_much_goes_as_is_needed_and_for_all_blocks_together() -> None:
    memory = make_memory(budget_bytes=40, block_bytes=4)
    for now, each in enumerate((A, B, C)):
        resident(memory, each, used_s=now)
    assert take(memory, 5, now=5) is not None  # 20 bytes of 10 unused and 10 of a's
    assert memory.collect_evicted() == (A,)
    assert memory.unused_bytes == 0


def test_a_small_adapter_stays_where_a_large_one_has_to_go_anyway() -> None:
    memory = make_memory(budget_bytes=46, block_bytes=1)
    small, large, other = (adapter(n, num_bytes=s) for n, s in (("s", 4), ("l", 30), ("o", 12)))
    for now, each in enumerate((small, large, other)):
        resident(memory, each, used_s=now)
    assert memory.claim(adapter("n", num_bytes=25), 9) == (large,)
    assert memory.adapters.residency(small) is Residency.RESIDENT
    assert memory.claim(adapter("m", num_bytes=9), 9) == (small,)  # 5 were left over


def test_a_block_is_not_forgotten_where_an_adapter_has_to_go_anyway() -> None:
    memory = make_memory(budget_bytes=20, block_bytes=5)
    cached(memory, 1, since_s=0)
    large = adapter("l", num_bytes=15)
    resident(memory, large, used_s=1)
    assert memory.claim(adapter("n", num_bytes=12), 2) == (large,)
    assert memory.blocks.num_cached == 1


def test_blocks_give_their_memory_to_an_adapter_and_are_told_to_the_shell_once() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=4)
    first, second, third = (cached(memory, token, since_s=token) for token in (1, 2, 3))
    owned = take(memory, 4, now=4)
    assert owned is not None
    assert memory.unused_bytes == 2
    assert memory.claim(adapter("n", num_bytes=7), 5) == ()
    stripped = memory.collect_stripped()
    assert set(stripped) == {first, second}
    assert memory.collect_stripped() == ()
    assert not set(stripped) & set(owned)
    assert memory.blocks.find(extend(root(None), [3])) == third
    assert memory.unused_bytes == 3
    memory.check_invariants()


def test_a_load_leaves_the_bytes_that_are_to_be_spared() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=5)
    resident(memory, A, used_s=0)
    resident(memory, B, used_s=1)
    assert memory.claim(C, 2, spare_bytes=5) == (A,)
    before = state(memory)
    assert memory.claim(D, 2, spare_bytes=15) is None
    assert state(memory) == before
    assert take(memory, 2, now=3) is not None
    assert memory.collect_evicted() == ()


def test_a_load_that_finds_no_room_changes_nothing() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=5)
    resident(memory, A, used_s=0)
    resident(memory, B, used_s=0)
    cached(memory, 1, since_s=0)
    memory.adapters.pin(B)
    before = state(memory)
    assert memory.claim(adapter("n", num_bytes=21), 1) is None
    assert memory.claim(adapter("n", num_bytes=11), 1, Wanted(kept={A})) is None
    assert state(memory) == before
    assert memory.claim(adapter("n", num_bytes=20), 1) == (A,)


def test_blocks_that_cannot_all_be_had_take_nothing() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=10)
    resident(memory, A, used_s=0)
    memory.adapters.pin(A)
    cached(memory, 1, since_s=0)
    before = state(memory)
    assert not memory.can_take(3)
    assert not memory.make_room(3, 1)
    assert state(memory) == before
    assert memory.can_take(2)
    assert memory.make_room(2, 1)


def test_a_guess_takes_unused_memory_only_and_not_what_is_to_be_spared() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=5)
    resident(memory, A, used_s=0)
    cached(memory, 1, since_s=0)
    assert not memory.claim_unused(adapter("n", num_bytes=16))
    assert not memory.claim_unused(adapter("n", num_bytes=11), spare_bytes=5)
    blocks = take(memory, 2, now=1)
    assert blocks is not None
    memory.blocks.release(blocks, 1)
    assert memory.claim_unused(adapter("n", num_bytes=14))
    assert set(memory.collect_stripped()) == set(blocks)
    assert memory.blocks.num_cached == 1
    assert memory.adapters.residency(A) is Residency.RESIDENT
    memory.check_invariants()


def test_what_was_not_given_back_is_listed_again_unless_its_room_is_taken() -> None:
    memory = make_memory(budget_bytes=30, block_bytes=5)
    for now, each in enumerate((A, B, C)):
        resident(memory, each, used_s=now)
    assert memory.claim(adapter("n", num_bytes=30), 5) == (A, B, C)
    memory.adapters.load_failed(adapter("n", num_bytes=30))
    assert memory.take_back(A)
    assert memory.adapters.residency(A) is Residency.RESIDENT
    assert memory.claim_unused(B)
    assert not memory.take_back(B)
    assert memory.claim_unused(D)
    assert not memory.take_back(C)
    memory.check_invariants()


def test_adapters_do_not_go_for_blocks_that_the_pool_does_not_have() -> None:
    pool = BlockPool(2)
    memory = Memory(40, 10, pool, AdapterCache(Lru(60.0)))
    for now, each in enumerate((A, B)):
        resident(memory, each, used_s=now)
    cached(memory, 1, since_s=2)
    resident(memory, C, used_s=3)
    assert not memory.fits(3, None)
    assert not memory.can_take(3)
    assert take(memory, 2, now=4) is not None  # one in a's memory, then only the known one is left
    assert memory.collect_evicted() == (A,)
    assert memory.blocks.num_cached == 0
    assert take(memory, 1, now=4) is None


@pytest.mark.parametrize(
    ("num_blocks", "num_bytes", "fits"),
    [(3, 10, True), (3, 11, False), (4, 0, True), (5, 0, False)],
)
def test_what_fits_is_known_beforehand(num_blocks: int, num_bytes: int, fits: bool) -> None:
    memory = make_memory(budget_bytes=40, block_bytes=10)
    assert memory.fits(num_blocks, adapter("n", num_bytes=num_bytes)) is fits
    assert memory.fits(num_blocks, None) is (num_blocks <= 4)


def test_for_the_hosts_sake_the_least_worthy_go_and_no_more_than_that() -> None:
    memory = make_memory(budget_bytes=100)
    for of, used_s in ((A, 3), (B, 1), (C, 2), (D, 4)):
        resident(memory, of, used_s)
    memory.adapters.pin(B)
    assert memory.give_up(15, 5, kept={C}) == (A, D)
    assert memory.give_up(15, 5, kept={C}) == ()
    assert memory.give_up(1, 5, kept=()) == (C,)
    memory.check_invariants()
    assert memory.adapters.adapters(Residency.RESIDENT) == (B,)


def test_for_the_hosts_sake_one_large_adapter_spares_several_small_ones() -> None:
    memory = make_memory(budget_bytes=100)
    small, large = adapter("small", num_bytes=2), adapter("large", num_bytes=50)
    resident(memory, small, used_s=1)
    resident(memory, large, used_s=2)
    assert memory.give_up(40, 5, kept=()) == (large,)


def test_nothing_goes_where_nothing_is_asked_for() -> None:
    memory = make_memory(budget_bytes=100)
    resident(memory, A, used_s=1)
    assert memory.give_up(0, 5, kept=()) == ()


def test_used_bytes_are_those_that_run_load_or_were_used_lately() -> None:
    memory = make_memory(budget_bytes=100)
    for of, used_s in ((A, 1), (B, 2), (C, 9)):
        resident(memory, of, used_s)
    assert memory.claim_unused(D)
    memory.adapters.pin(A)
    assert memory.adapters.used_bytes_since(5) == sum(a.num_bytes for a in (A, C, D))
