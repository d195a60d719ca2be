"""Tells the host's memd how much memory is in use here, and gives some back when it asks."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from anole_shared.codec import decode_memory, encode
from anole_shared.errors import MessageError
from anole_shared.messages import (
    MAX_DATAGRAM_BYTES,
    DemandReported,
    LeaseRevoked,
    MemoryMessage,
    MemoryRefused,
    RevocationAnswered,
)

log = logging.getLogger(__name__)

REPORT_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_MARGIN = 0.8
"""The part of the time that memd gives in which it is done here: the answer takes some, too."""

GiveUp = Callable[[int], Awaitable[int]]


class Revocations:
    """A connection of its own to memd, so that nobody who leases has to listen as well."""

    def __init__(
        self,
        socket_path: Path,
        used_bytes: Callable[[], int],
        give_up: GiveUp,
        *,
        report_s: float = REPORT_S,
    ) -> None:
        """used_bytes: of what is leased, what was used lately. give_up: free so many bytes."""
        self._report_s = report_s
        self._socket_path = socket_path
        self._used_bytes = used_bytes
        self._give_up = give_up

    async def run(self) -> None:
        """For ever; where memd is gone, tries again and again."""
        pause_s = _FIRST_PAUSE_S
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            try:
                with sock:
                    sock.connect(str(self._socket_path))
                    pause_s = _FIRST_PAUSE_S
                    await self._serve(sock)
            except* (OSError, MessageError) as faults:
                log.debug("memd at %s: %s", self._socket_path, faults.exceptions)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _serve(self, sock: socket.socket) -> None:
        """Report and listen until the connection ends."""
        async with asyncio.TaskGroup() as tasks:
            reporting = tasks.create_task(self._report(sock), name="worker memory demand")
            try:
                await self._listen(sock)
            finally:
                reporting.cancel()

    async def _report(self, sock: socket.socket) -> None:
        while True:
            with suppress(OSError):
                sock.send(encode(DemandReported(used_bytes=self._used_bytes())))
            await asyncio.sleep(self._report_s)

    async def _listen(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while datagram := await loop.sock_recv(sock, MAX_DATAGRAM_BYTES + 1):
            answer = await self._answer(decode_memory(datagram))
            if answer is not None:
                await loop.sock_sendall(sock, encode(answer))

    async def _answer(self, message: MemoryMessage) -> RevocationAnswered | None:
        if isinstance(message, MemoryRefused):
            log.warning("memd: %s", message.reason)
        if not isinstance(message, LeaseRevoked):
            return None
        given, reason = 0, ""
        try:
            async with asyncio.timeout(message.deadline_s * _MARGIN):
                given = await self._give_up(message.num_bytes)
        except TimeoutError:
            reason = "the rest is in line behind loads"
        except Exception:
            log.exception("memory that memd wants back cannot be given")
            reason = "the worker's log says why"
        if given < message.num_bytes and not reason:
            reason = "the rest is in use"
        log.info("memd asked for %d bytes back: %d given", message.num_bytes, given)
        return RevocationAnswered(
            revocation_id=message.revocation_id, num_bytes=given, reason=reason
        )
