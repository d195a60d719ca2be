"""Notices that a gateway is gone while requests of its clients are not done."""

import asyncio
import logging
from collections.abc import AsyncIterator

from anole_scheduler.core.events import GatewayGone
from anole_scheduler.custody import Custody
from anole_shared.bus import Bus
from anole_shared.errors import BusUnavailable
from anole_shared.ids import GatewayId
from anole_shared.topology import gateway_queue

log = logging.getLogger(__name__)

LOOK_S = 2.0


class GatewayWatch:
    """Looks for the queues on which gateways hear: each goes with its gateway.

    One that is missing at two looks is gone. It may only have been cut off from the broker for a
    while; then it submits its open requests again itself, once it is back.
    """

    def __init__(self, bus: Bus, custody: Custody) -> None:
        self._bus = bus
        self._custody = custody
        self._missing: set[GatewayId] = set()

    async def run(self) -> AsyncIterator[GatewayGone]:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            for gateway_id in await self.look():
                log.warning("gateway %s is gone; nobody waits for its requests", gateway_id)
                yield GatewayGone(gateway_id=gateway_id)

    async def look(self) -> list[GatewayId]:
        """Those that are gone."""
        try:
            missing = {
                gateway_id
                for gateway_id in self._custody.gateways
                if not await self._bus.exists(gateway_queue(gateway_id))
            }
        except BusUnavailable:
            self._missing.clear()
            return []
        gone = sorted(missing & self._missing)
        self._missing = missing
        return gone
