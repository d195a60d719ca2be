"""Server: moves datagrams between the connections and the desk."""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from itertools import count

from anole_memd.core.lease import Holder
from anole_memd.desk import Answer, Desk
from anole_memd.peers import Peer, peer_of
from anole_shared.codec import decode_memory, encode
from anole_shared.errors import MessageError
from anole_shared.ids import LeaseId
from anole_shared.messages import MAX_DATAGRAM_BYTES, MemoryMessage, MemoryRefused

log = logging.getLogger(__name__)

_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_ACCEPT_PAUSE_S = 1.0


class Connection:
    """One client's connection, and what is known of it."""

    def __init__(self, sock: socket.socket, number: int, peer: Peer) -> None:
        self.number = number
        self.peer = peer
        self.lease_ids: set[LeaseId] = set()
        self.is_watching = False
        self._socket = sock

    @property
    def holder(self) -> Holder:
        """The process at the other end."""
        return self.peer.holder

    def send(self, message: MemoryMessage, descriptor: int | None = None) -> bool:
        """Hand over at once: a client that reads has room for one. It is cut off if it has none."""
        try:
            if descriptor is None:
                self._socket.send(encode(message))
            else:
                socket.send_fds(self._socket, [encode(message)], [descriptor])
        except BlockingIOError:
            log.warning("connection %d closed: it asks but does not read the answers", self.number)
            self.cut()
            return False
        except OSError as fault:
            log.info("connection %d broke: %s", self.number, fault)
            self.cut()
            return False
        return True

    def cut(self) -> None:
        """Make its reader see the end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    async def receive(self) -> bytes:
        """The next datagram; empty at the end."""
        loop = asyncio.get_running_loop()
        return await loop.sock_recv(self._socket, MAX_DATAGRAM_BYTES + 1)

    def close(self) -> None:
        """Once nobody reads it any more."""
        self._socket.close()


class Server:
    """Accepts connections and serves each in a task of its own; one datagram, one answer."""

    def __init__(
        self,
        listener: socket.socket,
        desk: Desk,
        *,
        max_connections: int,
        allowed_uids: frozenset[int],
        on_connected: Callable[[Connection], None],
        on_gone: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """on_connected, on_gone: before a connection's first message, and after its last."""
        self._listener = listener
        self._desk = desk
        self._max_connections = max_connections
        self._allowed_uids = allowed_uids
        self._on_connected = on_connected
        self._on_gone = on_gone
        self._connections: set[Connection] = set()
        self._numbers = count(1)

    async def serve(self) -> None:
        """Serve until cancelled; then every connection is closed."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                sock = await self._accept()
                number = next(self._numbers)
                connection = Connection(sock, number, peer_of(sock, number))
                refusal = self._refusal(connection)
                if refusal is not None:
                    log.warning("connection refused: %s", refusal)
                    connection.send(MemoryRefused(reason=refusal))
                    connection.close()
                    continue
                self._connections.add(connection)
                tasks.create_task(self._serve_one(connection), name=f"memd.{number}")

    def _refusal(self, connection: Connection) -> str | None:
        if len(self._connections) >= self._max_connections:
            return (
                f"{len(self._connections)} are open, the most that ANOLE_MEMD_MAX_CONNECTIONS "
                "allows"
            )
        if connection.peer.uid not in self._allowed_uids:
            return (
                f"user {connection.peer.uid} (process {connection.holder.pid}) may not use this "
                "memd: ANOLE_MEMD_ALLOWED_UIDS names who may"
            )
        return None

    async def _accept(self) -> socket.socket:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as fault:
                if fault.errno not in _NO_DESCRIPTORS:
                    raise
                log.warning("no connection accepted for %.0f s: %s", _ACCEPT_PAUSE_S, fault)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
            else:
                return sock

    async def _serve_one(self, connection: Connection) -> None:
        self._on_connected(connection)
        try:
            while datagram := await connection.receive():
                answer = await self._desk.handle(connection, decode_memory(datagram))
                if not _send(connection, answer):
                    return
        except MessageError as fault:
            log.warning("connection %d closed: %s", connection.number, fault)
        except OSError as fault:
            log.info("connection %d broke: %s", connection.number, fault)
        finally:
            connection.close()
            self._connections.discard(connection)
            await self._on_gone(connection)

    def tell_watchers(self) -> None:
        """Send those who watch how memory stands now."""
        watching = [one for one in self._connections if one.is_watching]
        if watching:
            status = self._desk.status()
            for connection in watching:
                connection.send(status)


def _send(connection: Connection, answer: Answer) -> bool:
    try:
        return connection.send(answer.message, answer.descriptor)
    finally:
        if answer.handle is not None:
            answer.handle.close()
