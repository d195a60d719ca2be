"""Digests are equal where keys and values are interchangeable, and nowhere else."""

import pytest

from anole_worker.core.adapter import Adapter
from anole_worker.core.prefix import Digest, extend, family, root
from tests.unit.worker.engines import adapter

A = adapter("a")


def digest(of: Adapter | None, *blocks: list[int]) -> Digest:
    found = root(of)
    for block in blocks:
        found = extend(found, block)
    return found


def test_the_same_tokens_behind_the_same_adapter_are_the_same() -> None:
    assert digest(A, [1, 2], [3, 4]) == digest(adapter("a"), [1, 2], [3, 4])


@pytest.mark.parametrize(
    "other",
    [
        digest(None, [1, 2], [3, 4]),
        digest(adapter("b"), [1, 2], [3, 4]),
        digest(adapter("a", generation="2"), [1, 2], [3, 4]),
        digest(A, [1, 2], [3, 5]),
        digest(A, [1, 3], [3, 4]),
        digest(A, [3, 4], [1, 2]),
        digest(A, [3, 4]),
        digest(A, [1, 2]),
        digest(A),
    ],
    ids=["base", "adapter", "generation", "token", "earlier", "order", "alone", "less", "none"],
)
def test_anything_else_is_another(other: Digest) -> None:
    assert digest(A, [1, 2], [3, 4]) != other


def test_tokens_do_not_run_into_each_other() -> None:
    assert digest(A, [1, 256]) != digest(A, [256, 1])
    assert digest(A, [1 << 32]) != digest(A, [1, 0])


def test_all_blocks_of_one_adapter_are_a_family_and_no_others() -> None:
    of_a = family(root(A))
    assert family(digest(A, [1], [2])) == of_a
    others = [None, adapter("b"), adapter("a", generation="2")]
    assert of_a not in [family(digest(other, [1], [2])) for other in others]
