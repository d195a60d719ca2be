"""UnixHttp: the REST interface of a hypervisor, on a unix socket."""

import json
from pathlib import Path
from typing import Any

import aiohttp

from anole_memd.errors import BackendSilent, RegionRefused

_MAX_REASON_CHARS = 500


class UnixHttp:
    """One socket. Waits are bounded by the caller."""

    def __init__(self, socket: Path, whose: str) -> None:
        self._socket = socket
        self._whose = whose
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """What it answers; None where that is empty.

        Raises:
            RegionRefused: an error's status, with the reason that came with it.
            BackendSilent: nobody listens, or the connection broke.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path=str(self._socket)),
                timeout=aiohttp.ClientTimeout(total=None),
            )
        try:
            async with self._session.request(
                method, f"http://localhost{path}", json=body
            ) as response:
                text = await response.text()
        except aiohttp.ClientError as fault:
            raise BackendSilent(
                f"{self._whose} does not answer at {self._socket}: {fault}"
            ) from fault
        if not response.ok:
            reason = text.strip()[:_MAX_REASON_CHARS]
            raise RegionRefused(
                f"{self._whose} answered {method} {path} with {response.status}: {reason}"
            )
        return json.loads(text) if text.strip() else None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
