"""Pilot: what memd does by itself, a few times a second: sweeps, retries, and the controller."""

import asyncio
import logging
from collections.abc import Callable

from anole_memd.books import Books
from anole_memd.core.controller import Controller, Pressure, Resize, Revoke, Sample
from anole_memd.core.records import SizeRequested
from anole_memd.keeper import Keeper
from anole_memd.lessor import Lessor
from anole_memd.revoker import Revoker
from anole_shared.clock import Clock

log = logging.getLogger(__name__)

PERIOD_S = 0.25
_SWEEP_EVERY = 4


class Pilot:
    """Samples, asks the controller, and carries out what it says."""

    def __init__(
        self,
        *,
        books: Books,
        keeper: Keeper,
        lessor: Lessor,
        revoker: Revoker,
        controller: Controller,
        gauge: Callable[[], Pressure],
        clock: Clock,
    ) -> None:
        self.pressure = Pressure.NONE
        """As last seen."""
        self._books = books
        self._keeper = keeper
        self._lessor = lessor
        self._revoker = revoker
        self._controller = controller
        self._gauge = gauge
        self._clock = clock

    async def run(self) -> None:
        """For ever."""
        number = 0
        while True:
            if number % _SWEEP_EVERY == 0:
                await self._lessor.sweep(self._clock.now())
                await self._keeper.retry(self._clock.now())
                self._books.flush()
            number += 1
            await self.round()
            await asyncio.sleep(PERIOD_S)

    async def start(self) -> None:
        """Begin with what the controller makes of the size that the journal has."""
        requested = self._controller.requested_bytes
        if requested != self._books.ledger.requested_bytes:
            self._books.note([SizeRequested(num_bytes=requested)])
        await self._keeper.follow_request(is_shrinking=False)

    async def round(self) -> None:
        """Look once, and do what is to be done."""
        now = self._clock.now()
        self._revoker.tick(now)
        self._take_pressure()
        sample = Sample(
            used_bytes=self._revoker.used_bytes,
            wanted_bytes=self._revoker.wanted_bytes,
            leased_bytes=self._books.ledger.sizes.leased,
            pressure=self.pressure,
        )
        for command in self._controller.tick(sample, now):
            match command:
                case Resize(num_bytes=num_bytes):
                    await self._resize(num_bytes)
                case Revoke(num_bytes=num_bytes, deadline_s=deadline_s):
                    self._revoker.revoke(num_bytes, deadline_s, now)

    def _take_pressure(self) -> None:
        before, self.pressure = self.pressure, self._gauge()
        self._books.ledger.is_pressed = self.pressure is not Pressure.NONE
        if self.pressure is not before:
            log.info("memory pressure: %s, was %s", self.pressure, before)
            self._books.on_change()  # who waits for room may have it now

    async def _resize(self, num_bytes: int) -> None:
        is_shrinking = num_bytes < self._books.ledger.requested_bytes
        self._books.note([SizeRequested(num_bytes=num_bytes)])
        log.debug("%d bytes requested", num_bytes)
        await self._keeper.follow_request(is_shrinking=is_shrinking)
