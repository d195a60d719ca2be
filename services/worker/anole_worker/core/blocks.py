"""Who owns which block of the KV pool, which blocks can be used again, and which take memory."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable

from anole_worker.core.prefix import Digest, family


class BlockPool:
    """Blocks of keys and values, by number. Each is in exactly one of four conditions.

    - *bare*: it takes no memory; nothing was ever written to it, or its memory was given back;
    - *free*: it takes memory and holds nothing that anybody could use;
    - *cached*: nobody owns it, but it holds a known prefix's keys and values;
    - *owned*: by one sequence or by several that share the prefix.

    A full block is published under the digest of all that its content depends on, by which others
    find it. Blocks that nobody owns any more stay, the least recently used first to be forgotten.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._bare = list(range(num_blocks - 1, -1, -1))
        self._free: list[int] = []
        self._cached: OrderedDict[int, float] = OrderedDict()  # since when, oldest first
        self._cached_of: defaultdict[bytes, dict[int, None]] = defaultdict(dict)  # by family
        self._owners: dict[int, int] = {}
        self._block_of: dict[Digest, int] = {}
        self._digest_of: dict[int, Digest] = {}

    @property
    def num_bare(self) -> int:
        """Blocks that take no memory."""
        return len(self._bare)

    @property
    def num_free(self) -> int:
        """Blocks that take memory for nothing."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that are kept in case their prefix comes again."""
        return len(self._cached)

    @property
    def num_owned(self) -> int:
        """Blocks that sequences hold."""
        return len(self._owners)

    @property
    def num_with_memory(self) -> int:
        """Blocks that take memory."""
        return self.num_blocks - len(self._bare)

    def cached_since(self) -> Iterable[float]:
        """Since when each cached block has had no owner, the next to be forgotten first."""
        return self._cached.values()

    def take_free(self) -> int:
        """Own a block that has memory."""
        block = self._free.pop()
        self._owners[block] = 1
        return block

    def take_bare(self) -> int:
        """Own a block that had no memory; it takes some from now on."""
        block = self._bare.pop()
        self._owners[block] = 1
        return block

    def find(self, digest: Digest) -> int | None:
        """The block that holds this, owned or not."""
        return self._block_of.get(digest)

    def is_cached(self, block: int) -> bool:
        """Whether the block is known and nobody owns it."""
        return block in self._cached

    def share(self, block: int) -> None:
        """Own a block that holds what is wanted already."""
        if block in self._cached:
            self._uncache(block)
        self._owners[block] = self._owners.get(block, 0) + 1

    def publish(self, block: int, digest: Digest) -> None:
        """Let a full block be found; of two with the same content the first stays known."""
        assert block in self._owners, f"block {block} has no owner"
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def release(self, blocks: Iterable[int], now: float) -> None:
        """Give up one ownership of each, in an order of theirs: the last is forgotten first."""
        for block in reversed(tuple(blocks)):
            left = self._owners[block] - 1
            if left:
                self._owners[block] = left
                continue
            del self._owners[block]
            if block in self._digest_of:
                self._cached[block] = now
                self._cached_of[family(self._digest_of[block])][block] = None
            else:
                self._free.append(block)

    def forget_oldest(self) -> None:
        """Make the cached block that has had no owner for longest free."""
        block = next(iter(self._cached))
        self._uncache(block)
        del self._block_of[self._digest_of.pop(block)]
        self._free.append(block)

    def _uncache(self, block: int) -> None:
        del self._cached[block]
        of = family(self._digest_of[block])
        del self._cached_of[of][block]
        if not self._cached_of[of]:
            del self._cached_of[of]

    def demote(self, of: bytes) -> None:
        """Let a family's cached blocks be the next to be forgotten, in the order that they had."""
        for block in reversed(self._cached_of.get(of, {})):
            self._cached[block] = float("-inf")
            self._cached.move_to_end(block, last=False)

    def strip(self, count: int) -> tuple[int, ...]:
        """Make count free blocks bare; whoever holds the memory has to give theirs back."""
        blocks = tuple(self._free.pop() for _ in range(count))
        self._bare.extend(blocks)
        return blocks

    def check_invariants(self) -> None:
        """Every block is in one condition, and what can be found is what was published."""
        conditions = [*self._bare, *self._free, *self._cached, *self._owners]
        assert sorted(conditions) == list(range(self.num_blocks))
        assert all(count > 0 for count in self._owners.values())
        assert {d: b for b, d in self._digest_of.items()} == self._block_of
        assert all(block in self._digest_of for block in self._cached)
        by_family = {b: of for of, blocks in self._cached_of.items() for b in blocks}
        assert by_family == {b: family(self._digest_of[b]) for b in self._cached}
        assert not any(block in self._digest_of for block in (*self._bare, *self._free))
