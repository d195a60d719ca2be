"""memd as a service: its parts put together by hand."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anole_memd.backend import Backend
from anole_memd.backends import memfd
from anole_memd.backends.pressure import PressureGauge, Thresholds
from anole_memd.books import Books
from anole_memd.choice import backend_of
from anole_memd.core.controller import Controller, ControllerLimits
from anole_memd.core.ledger import Ledger
from anole_memd.core.records import Numbered, SizeRequested
from anole_memd.desk import Desk
from anole_memd.journal import Header, Journal, boot_id, replay
from anole_memd.keeper import Keeper
from anole_memd.lessor import Lessor
from anole_memd.listener import listening
from anole_memd.metrics import Metrics, served
from anole_memd.pilot import Pilot
from anole_memd.recovery import recover
from anole_memd.revoker import Revoker
from anole_memd.server import Server
from anole_memd.settings import MemdSettings
from anole_memd.tenants import Tenants
from anole_shared.clock import Clock, SystemClock
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.units import MiB

log = logging.getLogger(__name__)

_STEP = 0.125
"""What is given up at each step under pressure."""


class MemdService:
    """Owns this host's memory regions and leases them. Needs neither the bus nor the store."""

    name = "memd"

    def __init__(
        self,
        common: CommonSettings,
        settings: MemdSettings,
        telemetry: Telemetry,
        clock: Clock | None = None,
    ) -> None:
        self._socket_path = common.memd_socket
        self._settings = settings
        self._tracer = telemetry.tracer
        self._clock = clock or SystemClock()

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Serve the socket until stop is set.

        Raises:
            ConfigurationError: the socket's or the journal's path cannot be used.
            BackendUnavailable: the backend cannot work here.
        """
        memfd.raise_descriptor_limit()
        backend = backend_of(self._settings)
        with listening(self._socket_path, self._settings.max_connections) as listener:
            try:
                await self._prove(backend)
                async with self._books(backend) as books:
                    parts = self._parts(books, backend)
                    await self._recover(parts)
                    server = self._server(listener, parts)
                    with served(parts.metrics, self._settings.metrics_port):
                        await self._serve(server, parts, ready, stop)
            finally:
                await backend.close()

    async def _recover(self, parts: "_Parts") -> None:
        backend_s, backend = self._settings.backend_s, parts.keeper.backend
        for region in await recover(parts.books, backend, timeout_s=backend_s):
            await parts.keeper.vacate(region.region_id)
        await parts.tenants.adopt(parts.books.ledger)
        await parts.pilot.start()

    def _server(self, listener: socket.socket, parts: "_Parts") -> Server:
        server = Server(
            listener,
            parts.desk,
            max_connections=self._settings.max_connections,
            allowed_uids=self._settings.uids,
            on_connected=parts.tenants.connected,
            on_gone=parts.tenants.gone,
        )

        def on_change() -> None:
            server.tell_watchers()
            parts.lessor.something_changed()

        parts.books.on_change = on_change
        parts.revoker.on_change = on_change
        return server

    async def _serve(
        self, server: Server, parts: "_Parts", ready: asyncio.Event, stop: asyncio.Event
    ) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(server.serve(), name="memd.serve"),
                tasks.create_task(parts.pilot.run(), name="memd.pilot"),
                tasks.create_task(parts.tenants.run(), name="memd.tenants"),
            ]
            num_mib = parts.books.ledger.total_bytes // MiB
            log.info("leasing up to %d MiB at %s", num_mib, self._socket_path)
            ready.set()
            await stop.wait()
            for task in running:
                task.cancel()

    async def _prove(self, backend: Backend) -> None:
        found = await backend.probe(timeout_s=self._settings.backend_s)
        log.info("%s: %s", backend.name, found)

    @asynccontextmanager
    async def _books(self, backend: Backend) -> AsyncIterator[Books]:
        """The ledger as its journal has it."""
        settings, total = self._settings, self._settings.budget_bytes
        if backend.slots is not None:
            total = min(total, sum(slot.num_bytes for slot in backend.slots))
        ledger = Ledger(total_bytes=total, max_leases_per_holder=settings.max_leases_per_connection)
        # Ids of an earlier ledger, were its journal lost, are not given again.
        ledger.apply(
            [
                Numbered(region=0, lease=int(self._clock.now())),
                SizeRequested(num_bytes=min(settings.floor, total)),
            ]
        )
        path = settings.journal or self._socket_path.with_name(f"{self._socket_path.name}.journal")
        header = Header(boot_id=boot_id(), backend=backend.name)
        replay(path, header, ledger)
        journal = Journal(path, header, ledger.snapshot)
        journal.rewrite()
        books = Books(ledger, journal)
        try:
            yield books
        finally:
            books.close()

    def _parts(self, books: Books, backend: Backend) -> "_Parts":
        settings, tracer, clock = self._settings, self._tracer, self._clock
        keeper = Keeper(books, backend, tracer, timeout_s=settings.backend_s)
        lessor = Lessor(books, keeper, tracer)
        revoker = Revoker(books.ledger, tracer)
        thresholds = Thresholds(some=settings.pressure_some, full=settings.pressure_full)
        gauge = PressureGauge(thresholds)
        if gauge.is_blind:
            log.warning("this kernel tells nothing of memory pressure: memd cannot give way to it")
        pilot = Pilot(
            books=books,
            keeper=keeper,
            lessor=lessor,
            revoker=revoker,
            controller=Controller(
                self._limits(books.ledger.total_bytes, backend.block_bytes),
                books.ledger.requested_bytes,
            ),
            gauge=gauge.read,
            clock=clock,
        )
        desk = Desk(
            books=books,
            keeper=keeper,
            lessor=lessor,
            revoker=revoker,
            clock=clock,
            pressure=lambda: pilot.pressure,
        )
        metrics = Metrics(
            books.ledger,
            revoker.outcomes.__getitem__,
            lambda: keeper.num_given_up,
            lambda: pilot.pressure,
        )
        keeper.count_unplug = metrics.count_unplug
        return _Parts(
            books=books,
            keeper=keeper,
            lessor=lessor,
            revoker=revoker,
            pilot=pilot,
            desk=desk,
            metrics=metrics,
            tenants=Tenants(lessor, revoker),
        )

    def _limits(self, total_bytes: int, block_bytes: int) -> ControllerLimits:
        settings = self._settings
        return ControllerLimits(
            floor_bytes=min(settings.floor, total_bytes),
            ceiling_bytes=total_bytes,
            block_bytes=block_bytes,
            headroom=settings.headroom,
            hold_s=settings.hold_s,
            step=_STEP,
            deadline_s=settings.revoke_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """What is between the socket and the backend."""

    books: Books
    keeper: Keeper
    lessor: Lessor
    revoker: Revoker
    pilot: Pilot
    desk: Desk
    metrics: Metrics
    tenants: Tenants
