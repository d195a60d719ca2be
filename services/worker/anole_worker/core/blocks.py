"""Who owns which block of the KV pool."""

from collections.abc import Iterable


class BlockPool:
    """A fixed number of KV blocks; each has one owner or is free.

    The order in which blocks come back does not matter: a block table may hold them in any order.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    def allocate(self, count: int) -> tuple[int, ...] | None:
        """The ids of count blocks, now the caller's; None, and nothing taken, if too few."""
        if count > len(self._free):
            return None
        blocks = tuple(self._free.pop() for _ in range(count))
        for block in blocks:
            self._is_free[block] = False
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Take blocks back. Freeing a free block is our bug."""
        for block in blocks:
            assert not self._is_free[block], f"block {block} freed twice"
            self._is_free[block] = True
            self._free.append(block)

    def check_invariants(self) -> None:
        """Every block is either owned or listed free, once."""
        assert len(set(self._free)) == len(self._free)
        assert sum(self._is_free) == len(self._free)
        assert all(self._is_free[block] for block in self._free)
