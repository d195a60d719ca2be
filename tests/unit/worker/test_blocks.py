"""The block pool."""

import pytest

from anole_worker.core.blocks import BlockPool


def test_blocks_have_one_owner_until_they_are_freed() -> None:
    pool = BlockPool(4)
    first, second = pool.allocate(2), pool.allocate(2)
    assert first is not None
    assert second is not None
    assert set(first).isdisjoint(second)
    assert pool.allocate(1) is None
    pool.free(first)
    assert pool.num_free == 2
    pool.check_invariants()


def test_asking_for_too_many_takes_nothing() -> None:
    pool = BlockPool(3)
    assert pool.allocate(4) is None
    assert pool.num_free == 3


def test_freeing_twice_is_caught() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(blocks)
