"""When a worker has the memory to start one more sequence."""

from collections.abc import Iterable
from typing import Protocol

from anole_sim.pool import Pool
from anole_sim.sequence import Sequence


class Running(Protocol):
    """What a worker has started."""

    @property
    def num_running(self) -> int: ...

    @property
    def max_num_seqs(self) -> int: ...

    def shares(self) -> Iterable[tuple[int, int]]:
        """Of each: tokens that it is expected to make yet, and those that it holds."""
        ...


class Admission(Protocol):
    """Asked for each sequence in turn, until one is not admitted."""

    def bytes_now(self, sequence: Sequence, running: Running, pool: Pool) -> int | None:
        """Bytes that must be free, adapters that can go not counted; None: it may not start."""
        ...


class PeakEstimate:
    """S-LoRA's test: the highest use of memory to come, if all are as long as they are thought.

    The sequences are sorted by what they have left to make; when the i-th longest ends, the i
    longest hold what they hold now and i times what that one had left. Adapters in use are added.
    Source: S-LoRA, slora/server/router/req_queue.py.
    """

    def bytes_now(self, sequence: Sequence, running: Running, pool: Pool) -> int | None:
        if running.num_running >= running.max_num_seqs:
            return None
        room = (pool.num_bytes - pool.needed_bytes(sequence.adapter)) // pool.kv_bytes
        own = (sequence.expected, sequence.prompt)
        if pool.kv_tokens + sum(own) > room:
            return None
        if not _peak_fits([*running.shares(), own], room):
            return None
        return sequence.prompt * pool.kv_bytes


class Fits:
    """Anole's own worker: what it needs now, and one token for each that runs.

    Who is too long is preempted later. What the sequences will need is the scheduler's to guess.
    """

    def bytes_now(self, sequence: Sequence, running: Running, pool: Pool) -> int | None:
        if running.num_running >= running.max_num_seqs:
            return None
        return (sequence.prompt + running.num_running) * pool.kv_bytes


def _peak_fits(shares: Iterable[tuple[int, int]], room: int) -> bool:
    held = 0
    for place, (left, now_held) in enumerate(sorted(shares, reverse=True), start=1):
        held += now_held
        if held + left * place > room:
            return False
    return True
