"""memd as a service: its parts put together by hand."""

import asyncio
import logging

from anole_memd.backends import huge_pages, memfd
from anole_memd.core.lease import LeaseTable
from anole_memd.lessor import Lessor
from anole_memd.listener import listening
from anole_memd.server import Server
from anole_memd.settings import MemdSettings
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.units import MiB

log = logging.getLogger(__name__)


class MemdService:
    """Leases this host's memory to its workers. Needs neither the bus nor the store."""

    name = "memd"

    def __init__(
        self, common: CommonSettings, settings: MemdSettings, telemetry: Telemetry
    ) -> None:
        self._socket_path = common.memd_socket
        self._settings = settings
        self._tracer = telemetry.tracer

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Serve the socket until stop is set.

        Raises:
            ConfigurationError: the socket's path cannot be used.
        """
        settings = self._settings
        memfd.raise_descriptor_limit()
        if not huge_pages.are_given():
            log.warning(
                "this kernel backs regions with pages of 4 KiB, which are filled and given back "
                "several times slower: echo advise > %s/shmem_enabled",
                huge_pages.SYSFS,
            )
        table = LeaseTable(
            budget_bytes=settings.budget_bytes,
            max_leases_per_owner=settings.max_leases_per_connection,
        )
        lessor = Lessor(table, self._tracer, memfd.create)
        with listening(self._socket_path, settings.max_connections) as listener:
            server = Server(listener, lessor, max_connections=settings.max_connections)
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(), name="memd.serve")
                log.info(
                    "leasing up to %d MiB at %s", settings.budget_bytes // MiB, self._socket_path
                )
                ready.set()
                await stop.wait()
                serving.cancel()
