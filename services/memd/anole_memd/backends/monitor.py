"""Monitor: a JSON conversation with QEMU or its guest agent, over a unix socket."""

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from anole_memd.errors import BackendError

# It logs as an error what is raised here, and what a retry mends.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class CommandFailed(BackendError):
    """The other side understood the command and refused it; the message has its reason."""


class MonitorGone(BackendError):
    """Nobody answers on the socket; the message names it."""


class Monitor:
    """One socket. A lost connection is made again by the next question."""

    def __init__(self, socket: Path, whom: str, *, greets: bool) -> None:
        """greets: QEMU itself says hello and negotiates, its guest agent does not."""
        self._socket = socket
        self._whom = whom
        self._greets = greets
        self._client: QMPClient | None = None
        self._connecting = asyncio.Lock()

    async def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """The answer to one command. It is for the caller to bound the wait.

        Raises:
            CommandFailed: it was refused.
            MonitorGone: there is no connection, or it broke.
        """
        client = await self._connected()
        try:
            return await client.execute(command, arguments)
        except ExecuteError as fault:
            raise CommandFailed(f"{command}: {fault}") from fault
        except (QMPError, OSError) as fault:
            await self.close()
            raise self._gone(fault) from fault

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            # It may be broken, which is why it is let go.
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()

    async def _connected(self) -> QMPClient:
        async with self._connecting:
            if self._client is None:
                client = QMPClient("memd")
                client.await_greeting = client.negotiate = self._greets
                try:
                    await client.connect(str(self._socket))
                except (QMPError, OSError) as fault:
                    raise self._gone(fault) from fault
                self._client = client
            return self._client

    def _gone(self, fault: Exception) -> MonitorGone:
        return MonitorGone(f"{self._whom} does not answer at {self._socket}: {fault}")
