"""Stop strings: where the answer ends although the model would go on. Pure."""

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string to be completed.

    Text that may be the beginning of a stop string is held back until the next text decides. What
    comes out does not depend on how the text was cut into pieces: of several stop strings the one
    that ends first counts, of several that end together the longest. Text that is exempt completes
    no stop string, but may begin one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """stops: at least one, and none may be empty."""
        self._stops = tuple(stops)
        self._held = ""
        self._num_exempt = 0
        """Characters at the begin of what is held in which no stop string may end."""
        self.is_matched = False

    def push(self, text: str, *, is_exempt: bool = False) -> str:
        """What of the text so far may now be shown; nothing more after a match."""
        if self.is_matched:
            return ""
        held = self._held + text
        if is_exempt:
            self._num_exempt = len(held)
        begin = self._match(held)
        if begin is None:
            keep = min(self._possible_begin(held, stop) for stop in self._stops)
            self._held = held[keep:]
            self._num_exempt = max(0, self._num_exempt - keep)
            return held[:keep]
        self.is_matched = True
        self._held = ""
        return held[:begin]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _match(self, text: str) -> int | None:
        found = [
            (begin + len(stop), begin)
            for stop in self._stops
            if (begin := text.find(stop, max(0, self._num_exempt - len(stop) + 1))) >= 0
        ]
        return min(found)[1] if found else None

    @staticmethod
    def _possible_begin(text: str, stop: str) -> int:
        """Where the longest end of text lies that begins stop; text's length if there is none."""
        begin = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while begin >= 0 and not stop.startswith(text[begin:]):
            begin = text.find(stop[0], begin + 1)
        return begin if begin >= 0 else len(text)
