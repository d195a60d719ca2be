"""Request id -> waiting client: where messages from workers and the scheduler find their reader."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from anole_gateway.errors import ApiError, Unavailable
from anole_shared.ids import RequestId
from anole_shared.messages import Message, RequestFailed, SequenceOutput, TokensGenerated

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gap:
    """Here letters may be missing, the last one too: nothing may ever come of what was asked."""


Letter = SequenceOutput | RequestFailed | ApiError | Gap
"""What may arrive for a client: tokens, the end of its request, or of this gateway, or a gap."""

_SPARE_LETTERS = 64
"""Room for letters without tokens: ends of lost attempts, mostly."""


class Mailbox:
    """What has arrived for one request and is not yet read. One reader."""

    def __init__(self, max_tokens: int) -> None:
        """max_tokens: at most so many letters bear tokens; a worker that sends more is broken."""
        self._letters: deque[Letter] = deque()
        self._max_letters = max_tokens + _SPARE_LETTERS
        self._is_filled = asyncio.Event()

    async def wait(self) -> None:
        """Return as soon as there is a letter."""
        await self._is_filled.wait()

    def put(self, letter: Letter) -> bool:
        """Add a letter; False if the box is full, and the letter lost.

        Of several gaps only the last one stays: what comes behind it is missing nothing.
        """
        if isinstance(letter, Gap) and letter in self._letters:
            self._letters.remove(letter)
        if len(self._letters) >= self._max_letters:
            return False
        self._letters.append(letter)
        self._is_filled.set()
        return True

    def peek(self) -> Letter | None:
        """The oldest letter, which stays."""
        return self._letters[0] if self._letters else None

    def drop(self) -> None:
        """Forget the oldest letter: it has been dealt with."""
        self._letters.popleft()
        if not self._letters:
            self._is_filled.clear()


class Streams:
    """All requests that this gateway waits for."""

    def __init__(self) -> None:
        self._mailboxes: dict[RequestId, Mailbox] = {}

    def __len__(self) -> int:
        return len(self._mailboxes)

    @contextmanager
    def open(self, request_id: RequestId, max_tokens: int) -> Iterator[Mailbox]:
        """Receive for request_id while the context is open."""
        mailbox = self._mailboxes[request_id] = Mailbox(max_tokens)
        try:
            yield mailbox
        finally:
            del self._mailboxes[request_id]

    def deliver(self, message: Message) -> None:
        """Hand a message from the bus to whom it concerns; nobody may wait for it any more."""
        match message:
            case TokensGenerated():
                for output in message.outputs:
                    self._put(output.request_id, output)
            case RequestFailed():
                self._put(message.request_id, message)
            case _:
                log.warning("%s does not belong on a gateway's queue; dropped", message.type)

    def tell_gap(self) -> None:
        """Tell everybody who waits that messages for them may have been lost."""
        if self._mailboxes:
            log.warning(
                "messages may have been lost while the broker was away: %d requests go on from "
                "their last token",
                len(self._mailboxes),
            )
        for request_id in self._mailboxes:
            self._put(request_id, Gap())

    def end_all(self, message: str) -> None:
        """Tell everybody who waits that nothing more comes, and why."""
        for request_id in self._mailboxes:
            self._put(request_id, Unavailable(message))

    def _put(self, request_id: RequestId, letter: Letter) -> None:
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None and not mailbox.put(letter):
            log.warning("request %s gets more than it asked for; dropped", request_id)
