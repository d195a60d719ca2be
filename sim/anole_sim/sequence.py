"""One request at one worker."""

from dataclasses import dataclass

from anole_shared.ids import RequestId
from anole_worker.core.adapter import Adapter


@dataclass(slots=True, eq=False)
class Sequence:
    """What a worker knows of a request, and how long it will really be."""

    request_id: RequestId
    attempt: int
    adapter: Adapter | None
    rank: int
    prompt: int
    """Tokens to run before the next one comes: the prompt, and what was made before a restart."""
    to_make: int
    """Tokens that it makes from here to its end; only the clock of the simulation knows."""
    expected: int
    """Tokens that it is thought to make from here."""
    arrived_s: float
    """When its client sent it."""
    order: int = 0
    added_s: float = 0.0
    prefilled: int = 0
    due_tick: int | None = None
    """At which decode step it ends; None before its first token."""
    made_before: int = 0
    """Tokens made before the last restart."""
    num_preemptions: int = 0
    has_no_room: bool = False
    """Whether there was no room for its adapter when that was last tried."""
    is_aborted: bool = False

    def restart(self, made: int) -> None:
        """Begin anew behind the tokens that it has made."""
        self.made_before += made
        self.prompt += made
        self.to_make -= made
        self.expected = max(1, self.expected - made)
        self.prefilled = 0
        self.due_tick = None
