"""Tenants: the processes that hold leases or might; what becomes of them when they go."""

import asyncio
import logging
from typing import Protocol

from anole_memd.backends import processes
from anole_memd.core.lease import Holder
from anole_memd.core.ledger import Ledger
from anole_memd.holders import HolderWatch
from anole_memd.lessor import Lessor
from anole_memd.revoker import Listener, Revoker
from anole_shared.ids import LeaseId

log = logging.getLogger(__name__)


class Line(Listener, Protocol):
    """A connection, as far as it matters here."""

    @property
    def holder(self) -> Holder:
        """The process at the other end."""
        ...

    lease_ids: set[LeaseId]


class Tenants:
    """Hears of connections that come and go, and of processes that end."""

    def __init__(self, lessor: Lessor, revoker: Revoker) -> None:
        self._lessor = lessor
        self._revoker = revoker
        self._ended: asyncio.Queue[Holder] = asyncio.Queue()
        self._watch = HolderWatch(self._ended.put_nowait)

    def connected(self, line: Line) -> None:
        """A process has connected."""
        self._watch.add(line.holder)

    async def gone(self, line: Line) -> None:
        """A connection is gone; its process may live on."""
        self._revoker.hung_up(line)
        await self._lessor.detach(line.holder, line.lease_ids)

    async def adopt(self, ledger: Ledger) -> None:
        """Watch those who held leases of an earlier memd; who has ended holds none."""
        for holder in ledger.holders:
            if not self._watch.add(holder) and not processes.is_alive(holder.pid, holder.started):
                await self._lessor.holder_ended(holder)

    async def run(self) -> None:
        """End the leases of processes that have ended, for ever."""
        try:
            while True:
                await self._lessor.holder_ended(await self._ended.get())
        finally:
            self._watch.close()
