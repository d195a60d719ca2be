"""The real memd in a thread of this process, for what is measured without a whole worker."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anole_cli.services import private_socket, remove_private_socket
from anole_memd.app import MemdService
from anole_memd.settings import MemdSettings
from anole_shared.settings import CommonSettings, load
from anole_shared.telemetry import Telemetry

_START_S = 20.0


@contextmanager
def leasing(budget_bytes: int | None = None, **more: float) -> Iterator[Path]:
    """The socket of a memd that leases so many bytes; None: as many as its settings say.

    more: other settings of memd's.
    """
    path = private_socket()
    try:
        common = load(CommonSettings, memd_socket=path)
        settings = load(MemdSettings, budget_bytes=budget_bytes, **more)
        thread = _Thread(MemdService(common, settings, Telemetry("memd")))
        thread.start()
        try:
            thread.wait_until_ready()
            yield path
        finally:
            thread.stop()
    finally:
        remove_private_socket(path)


class _Thread(threading.Thread):
    """Runs the service on an event loop of its own."""

    def __init__(self, service: MemdService) -> None:
        super().__init__(name="memd", daemon=True)
        self._service = service
        self._is_ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_stop: asyncio.Event | None = None

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        ready, self._asked_to_stop = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._service.run(ready=ready, stop=self._asked_to_stop), name="memd")
            await ready.wait()
            self._is_ready.set()

    def wait_until_ready(self) -> None:
        if not self._is_ready.wait(_START_S):
            raise RuntimeError("memd did not start; its log says why")

    def stop(self) -> None:
        if self._loop is not None and self._asked_to_stop is not None:
            self._loop.call_soon_threadsafe(self._asked_to_stop.set)
        self.join(_START_S)
