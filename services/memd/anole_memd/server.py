"""Server: moves datagrams between the connections and the lessor."""

import asyncio
import errno
import logging
import socket
from itertools import count

from anole_memd.lessor import Answer, Lessor
from anole_shared.codec import decode_memory, encode
from anole_shared.errors import MessageError
from anole_shared.messages import MAX_DATAGRAM_BYTES

log = logging.getLogger(__name__)

_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}
_ACCEPT_PAUSE_S = 1.0


class Server:
    """Accepts connections and serves each in a task of its own; one datagram, one answer."""

    def __init__(self, listener: socket.socket, lessor: Lessor, *, max_connections: int) -> None:
        self._listener = listener
        self._lessor = lessor
        self._max_connections = max_connections
        self._num_connections = 0
        self._owners = count(1)

    async def serve(self) -> None:
        """Serve until cancelled; then every connection is closed and every lease is ended."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                connection = await self._accept()
                if self._num_connections >= self._max_connections:
                    log.warning(
                        "connection refused: %d are open, the most that "
                        "ANOLE_MEMD_MAX_CONNECTIONS allows",
                        self._num_connections,
                    )
                    connection.close()
                    continue
                self._num_connections += 1
                owner = next(self._owners)
                tasks.create_task(self._serve_one(connection, owner), name=f"memd.{owner}")

    async def _accept(self) -> socket.socket:
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            except OSError as fault:
                if fault.errno not in _NO_DESCRIPTORS:
                    raise
                log.warning("no connection accepted for %.0f s: %s", _ACCEPT_PAUSE_S, fault)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
            else:
                return connection

    async def _serve_one(self, connection: socket.socket, owner: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            while datagram := await loop.sock_recv(connection, MAX_DATAGRAM_BYTES + 1):
                _send(connection, self._lessor.handle(owner, decode_memory(datagram)))
        except MessageError as fault:
            log.warning("connection %d closed: %s", owner, fault)
        except BlockingIOError:
            log.warning("connection %d closed: it asks but does not read the answers", owner)
        except OSError as fault:
            log.info("connection %d broke: %s", owner, fault)
        finally:
            connection.close()
            self._num_connections -= 1
            self._lessor.holder_gone(owner)


def _send(connection: socket.socket, answer: Answer) -> None:
    """Hand over at once: a client that reads its answers has room for one."""
    descriptors = [] if answer.descriptor is None else [answer.descriptor]
    if descriptors:
        socket.send_fds(connection, [encode(answer.message)], descriptors)
    else:
        connection.send(encode(answer.message))
