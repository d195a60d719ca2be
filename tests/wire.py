"""A TCP hop between a client and a server, which a test can cut or hold."""

import asyncio
from types import TracebackType
from typing import Self


class Wire:
    """Forwards 127.0.0.1:<port> to a server on this machine, for as long as it is whole."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._is_cut = False
        self._flows = asyncio.Event()
        self._flows.set()
        self._ends: set[asyncio.StreamWriter] = set()
        self._num_open = 0
        self._all_closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(self._listener.sockets[0].getsockname()[1])
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        self.cut()
        self.release()
        while self._num_open:
            self._all_closed.clear()
            await self._all_closed.wait()

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._is_cut = True
        for end in self._ends:
            end.transport.abort()

    def mend(self) -> None:
        """Let connections be made again."""
        self._is_cut = False

    def hold(self) -> None:
        """Keep connections open, but let nothing through."""
        self._flows.clear()

    def release(self) -> None:
        """Let through what was held."""
        self._flows.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_open += 1
        self._ends.add(writer)
        try:
            if not self._is_cut:
                await self._connect(reader, writer)
        except OSError:
            return
        finally:
            self._ends.discard(writer)
            writer.transport.abort()
            self._num_open -= 1
            self._all_closed.set()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection("127.0.0.1", self._server_port)
        self._ends.add(server[1])
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(reader, server[1]), name="to server")
                ways.create_task(self._pump(server[0], writer), name="to client")
        finally:
            self._ends.discard(server[1])
            server[1].transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        writer.close()
