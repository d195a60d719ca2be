"""One worker's budget of bytes, as far as the scheduler knows how it is used."""

from dataclasses import dataclass
from typing import NamedTuple

from anole_shared.ids import AdapterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker can hold at once."""

    max_num_seqs: int
    block_size: int
    """Tokens per KV block."""
    block_bytes: int
    memory_bytes: int
    """For KV blocks and adapters together."""
    max_model_len: int

    @property
    def num_blocks(self) -> int:
        """KV blocks if there were no adapter."""
        return self.memory_bytes // self.block_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens of all blocks: the pool in the unit of quotas."""
        return self.num_blocks * self.block_size

    @property
    def bytes_per_token(self) -> float:
        """What one token's keys and values take."""
        return self.block_bytes / self.block_size

    def longest(self, adapter_bytes: int = 0) -> int:
        """Tokens of the longest request that can ever run, beside an adapter of that size."""
        num_blocks = max(self.memory_bytes - adapter_bytes, 0) // self.block_bytes
        return min(self.max_model_len, num_blocks * self.block_size)


class Charge(NamedTuple):
    """What one request takes of a worker's memory."""

    num_blocks: int
    adapter_id: AdapterId | None
    adapter_bytes: int
    """Counted once for all requests that share the adapter."""


class Budget:
    """The bytes of blocks and of adapters in use.

    An adapter that nobody uses counts nothing: it goes when its bytes are needed.
    """

    __slots__ = ("_block_bytes", "_users", "num_blocks", "used_bytes")

    def __init__(self, block_bytes: int) -> None:
        self.num_blocks = 0
        self.used_bytes = 0
        self._block_bytes = block_bytes
        self._users: dict[AdapterId, tuple[int, int]] = {}  # how many, and the adapter's bytes

    def is_used(self, adapter_id: AdapterId) -> bool:
        """Whether a request that is counted needs the adapter."""
        return adapter_id in self._users

    def needed(self, charge: Charge) -> int:
        """Bytes that the charge would add."""
        num_blocks, adapter_id, adapter_bytes = charge
        needed = num_blocks * self._block_bytes
        if adapter_id is not None and adapter_id not in self._users:
            needed += adapter_bytes
        return needed

    def take(self, charge: Charge) -> None:
        """Count a request."""
        num_blocks, adapter_id, adapter_bytes = charge
        self.num_blocks += num_blocks
        self.used_bytes += num_blocks * self._block_bytes
        if adapter_id is not None:
            count, num_bytes = self._users.get(adapter_id, (0, adapter_bytes))
            if count == 0:
                self.used_bytes += num_bytes
            self._users[adapter_id] = (count + 1, num_bytes)

    def give_back(self, charge: Charge) -> None:
        """Count a request no more."""
        num_blocks, adapter_id, _ = charge
        self.num_blocks -= num_blocks
        self.used_bytes -= num_blocks * self._block_bytes
        if adapter_id is not None:
            count, num_bytes = self._users.pop(adapter_id)
            if count > 1:
                self._users[adapter_id] = (count - 1, num_bytes)
            else:
                self.used_bytes -= num_bytes

    def freed(self, charge: Charge) -> int:
        """Bytes that giving the charge back would free."""
        freed = charge.num_blocks * self._block_bytes
        if charge.adapter_id is not None and self._users[charge.adapter_id][0] == 1:
            freed += self._users[charge.adapter_id][1]
        return freed

    def check_invariants(self) -> None:
        """Assert that nothing is negative, and each adapter is counted once."""
        assert self.num_blocks >= 0
        adapter_bytes = sum(num_bytes for _, num_bytes in self._users.values())
        assert self.used_bytes == self.num_blocks * self._block_bytes + adapter_bytes
        assert all(count > 0 for count, _ in self._users.values())
