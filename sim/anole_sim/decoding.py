"""The sequences of a simulated worker that make tokens, as sums: a step costs no loop over them."""

from anole_sim.sequence import Sequence


class Decoding:
    """Who decodes, until which step, and the gaps between tokens."""

    def __init__(self) -> None:
        self.num = 0
        self.context = 0
        """Tokens that they hold."""
        self.ranks = 0
        """The sum of their adapters' ranks."""
        self.gaps: list[tuple[float, int]] = []
        """Times between two tokens of a stream, and of how many streams."""
        self._tick = 0
        self._due: dict[int, list[Sequence]] = {}
        self._last_s = 0.0
        self._fresh_s: list[float] = []

    def join(self, sequence: Sequence, now: float) -> None:
        """A sequence has made its first token, and has more to make."""
        sequence.due_tick = self._tick + sequence.to_make - 1
        self._due.setdefault(sequence.due_tick, []).append(sequence)
        self.num += 1
        self.context += sequence.prompt
        self.ranks += sequence.rank
        self._fresh_s.append(now)

    def leave(self, sequence: Sequence) -> None:
        """A sequence stops before its end."""
        assert sequence.due_tick is not None
        self._due[sequence.due_tick].remove(sequence)
        self._forget(sequence)

    def advance(self, now: float) -> list[Sequence]:
        """Everybody makes one token; those that have made their last one, who leave."""
        old = self.num - len(self._fresh_s)
        if old > 0:
            self.gaps.append((now - self._last_s, old))
        self.gaps += [(now - first_s, 1) for first_s in self._fresh_s]
        self._fresh_s.clear()
        self._last_s = now
        self._tick += 1
        self.context += self.num
        ended = self._due.pop(self._tick, [])
        for sequence in ended:
            self._forget(sequence)
        return ended

    def _forget(self, sequence: Sequence) -> None:
        self.num -= 1
        self.context -= sequence.prompt + self.steps(sequence)
        self.ranks -= sequence.rank

    def steps(self, sequence: Sequence) -> int:
        """Decode steps that a sequence has made: its tokens behind the first."""
        if sequence.due_tick is None:
            return 0
        return sequence.to_make - 1 - (sequence.due_tick - self._tick)
