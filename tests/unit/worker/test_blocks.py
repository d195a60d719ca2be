"""The block pool: bare, free, cached and owned blocks."""

import pytest

from anole_worker.core.blocks import BlockPool
from anole_worker.core.prefix import Digest, extend, family, root
from tests.unit.worker.engines import adapter

A = adapter("a")


def digest(token: int, of_a: bool = False) -> Digest:
    return extend(root(A if of_a else None), [token])


def cached(pool: BlockPool, *tokens: int, now: float, of_a: bool = False) -> list[int]:
    """Blocks of one sequence that has ended."""
    blocks = [pool.take_bare() for _ in tokens]
    for block, token in zip(blocks, tokens, strict=True):
        pool.publish(block, digest(token, of_a))
    pool.release(blocks, now)
    return blocks


def forgotten(pool: BlockPool) -> list[int]:
    """All cached blocks in the order in which they are forgotten."""
    order = []
    for _ in range(pool.num_cached):
        pool.forget_oldest()
        order.append(pool.take_free())
    return order


def counts(pool: BlockPool) -> tuple[int, int, int, int]:
    pool.check_invariants()
    return pool.num_bare, pool.num_free, pool.num_cached, pool.num_owned


def test_a_block_without_known_content_is_free_when_it_is_given_up() -> None:
    pool = BlockPool(3)
    first, second = pool.take_bare(), pool.take_bare()
    assert first != second
    assert counts(pool) == (1, 0, 0, 2)
    pool.release([first, second], 0)
    assert counts(pool) == (1, 2, 0, 0)
    assert pool.num_with_memory == 2
    pool.take_free()
    assert counts(pool) == (1, 1, 0, 1)


def test_a_published_block_is_found_while_it_is_owned_and_afterwards() -> None:
    pool = BlockPool(1)
    block = pool.take_bare()
    assert pool.find(digest(1)) is None
    pool.publish(block, digest(1))
    assert pool.find(digest(1)) == block
    assert not pool.is_cached(block)
    pool.release([block], 5)
    assert pool.find(digest(1)) == block
    assert pool.is_cached(block)
    assert list(pool.cached_since()) == [5]
    assert counts(pool) == (0, 0, 1, 0)


def test_a_shared_block_stays_owned_until_its_last_owner_gives_it_up() -> None:
    pool = BlockPool(1)
    [block] = cached(pool, 1, now=0)
    pool.share(block)
    pool.share(block)
    pool.release([block], 1)
    assert counts(pool) == (0, 0, 0, 1)
    pool.release([block], 2)
    assert counts(pool) == (0, 0, 1, 0)


def test_of_two_blocks_with_the_same_content_the_first_stays_known() -> None:
    pool = BlockPool(2)
    first, second = pool.take_bare(), pool.take_bare()
    pool.publish(first, digest(1))
    pool.publish(second, digest(1))
    assert pool.find(digest(1)) == first
    pool.release([first, second], 0)
    assert counts(pool) == (0, 1, 1, 0)


def test_the_longest_unowned_is_forgotten_first_and_a_prefix_from_its_end() -> None:
    pool = BlockPool(5)
    old = cached(pool, 1, 2, now=1)
    new = cached(pool, 3, 4, 5, now=2)
    assert forgotten(pool) == [*reversed(old), *reversed(new)]
    assert [pool.find(digest(token)) for token in range(1, 6)] == [None] * 5


def test_a_block_that_was_shared_again_is_the_last_to_be_forgotten() -> None:
    pool = BlockPool(2)
    [first] = cached(pool, 1, now=1)
    [second] = cached(pool, 2, now=2)
    pool.share(first)
    pool.release([first], 3)
    assert forgotten(pool) == [second, first]


def test_a_demoted_family_is_forgotten_first_in_the_order_that_it_had() -> None:
    pool = BlockPool(6)
    base = cached(pool, 1, 2, now=1)
    of_a = cached(pool, 3, 4, now=2, of_a=True)
    later_of_a = cached(pool, 5, now=3, of_a=True)
    pool.share(later_of_a[0])
    pool.demote(family(root(A)))
    pool.demote(family(root(adapter("nobody's"))))
    assert list(pool.cached_since()) == [float("-inf")] * 2 + [1, 1]
    pool.release(later_of_a, 4)
    pool.check_invariants()
    assert forgotten(pool) == [*reversed(of_a), *reversed(base), *later_of_a]


def test_stripping_makes_free_blocks_bare() -> None:
    pool = BlockPool(3)
    blocks = [pool.take_bare() for _ in range(3)]
    pool.release(blocks[:2], 0)
    assert set(pool.strip(2)) == set(blocks[:2])
    assert counts(pool) == (2, 0, 0, 1)


def test_a_block_that_nobody_owns_cannot_be_given_up_or_published() -> None:
    pool = BlockPool(2)
    block = pool.take_bare()
    pool.release([block], 0)
    with pytest.raises(KeyError):
        pool.release([block], 0)
    with pytest.raises(AssertionError, match="no owner"):
        pool.publish(block, digest(1))
