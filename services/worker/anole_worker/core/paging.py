"""Gives sequences their blocks: known prefixes shared, the rest as tokens come."""

from collections.abc import Collection

from anole_shared.units import div_ceil
from anole_worker.core.memory import Memory, Wanted
from anole_worker.core.prefix import Digest
from anole_worker.core.sequence import Sequence


class Paging:
    """Block tables over the shared memory.

    Only full blocks are shared, and only where adapter and all tokens are the same. At least one
    token of a sequence is always run, since its logits are needed.
    """

    def __init__(self, memory: Memory, block_size: int) -> None:
        self.memory = memory
        self.block_size = block_size

    def open(self, sequence: Sequence, now: float, wanted: Wanted, headroom: int) -> bool:
        """Give a sequence blocks for all the tokens that it has.

        False, with nothing changed, where they cannot be had so that headroom blocks more could.
        """
        blocks = self.memory.blocks
        known = self._known(sequence)
        missing = sequence.num_blocks(self.block_size) - len(known)
        num_reused = sum(blocks.is_cached(block) for block in known)
        if not self.memory.can_take(missing + num_reused + headroom, wanted.kept):
            return False
        for block in known:
            blocks.share(block)
        sequence.block_table = known
        self._count_reused(sequence, len(known))
        has_all = self.grow(sequence, len(sequence.token_ids), now, wanted)
        assert has_all, "blocks that could be taken were not there"
        return True

    def _known(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the sequence's beginning already."""
        known: list[int] = []
        if sequence.is_scoring:
            return known
        for index in range((len(sequence.token_ids) - 1) // self.block_size):
            block = self.memory.blocks.find(sequence.digest(index, self.block_size))
            if block is None:
                break
            known.append(block)
        return known

    def reuse(self, sequence: Sequence, now: float) -> None:
        """Take over what others have computed of a sequence's next blocks since it started."""
        blocks = self.memory.blocks
        while (digest := self.next_digest(sequence)) is not None:
            block = blocks.find(digest)
            index = sequence.num_computed_tokens // self.block_size
            if block is None:
                return
            blocks.share(block)
            blocks.release((sequence.block_table[index],), now)
            sequence.block_table[index] = block
            self._count_reused(sequence, 1)

    def next_digest(self, sequence: Sequence) -> Digest | None:
        """The digest of the next whole block that a sequence would have to compute, if any."""
        index, inside = divmod(sequence.num_computed_tokens, self.block_size)
        return None if inside else self._whole(sequence, index)

    def _whole(self, sequence: Sequence, index: int) -> Digest | None:
        """The digest of a block that could be shared: full, and not with the last token in it."""
        is_whole = (index + 1) * self.block_size < len(sequence.token_ids)
        if not is_whole or sequence.is_scoring:
            return None
        return sequence.digest(index, self.block_size)

    def num_own_tokens(self, sequence: Sequence, filled: Collection[Digest], budget: int) -> int:
        """Tokens that a sequence has to compute before the first block that another row fills.

        They are at most budget.
        """
        begin = sequence.num_computed_tokens
        end = min(begin + budget, len(sequence.token_ids))
        for index in range(div_ceil(begin, self.block_size), div_ceil(end, self.block_size)):
            if filled and self._whole(sequence, index) in filled:
                return index * self.block_size - begin
        return end - begin

    def digests(self, sequence: Sequence, end: int) -> Collection[Digest]:
        """The digests of the blocks that computing a sequence up to end fills."""
        first = sequence.num_computed_tokens // self.block_size
        return [sequence.digest(i, self.block_size) for i in range(first, end // self.block_size)]

    def _count_reused(self, sequence: Sequence, num_blocks: int) -> None:
        num_tokens = num_blocks * self.block_size
        sequence.num_computed_tokens += num_tokens
        if not sequence.num_preemptions:
            sequence.num_cached_tokens += num_tokens

    def grow(self, sequence: Sequence, num_tokens: int, now: float, wanted: Wanted) -> bool:
        """Add the blocks that so many tokens need; False where they cannot be had."""
        missing = div_ceil(num_tokens, self.block_size) - len(sequence.block_table)
        if missing > 0 and not self.memory.make_room(missing, now, wanted):
            return False
        sequence.block_table += [self.memory.take_block() for _ in range(missing)]
        return True

    def computed(self, sequence: Sequence, num_tokens: int) -> None:
        """So many tokens more have keys and values; blocks that are full can be shared now."""
        begin = sequence.num_computed_tokens // self.block_size
        sequence.num_computed_tokens += num_tokens
        for index in range(begin, sequence.num_computed_tokens // self.block_size):
            digest = sequence.digest(index, self.block_size)
            self.memory.blocks.publish(sequence.block_table[index], digest)

    def close(self, sequence: Sequence, now: float) -> None:
        """Take all blocks back."""
        self.memory.blocks.release(sequence.block_table, now)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
