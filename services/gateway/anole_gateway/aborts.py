"""Tells the scheduler which requests nobody waits for any more."""

import asyncio
import logging
from dataclasses import dataclass

from anole_shared.bus import Bus, Headers
from anole_shared.errors import BusError
from anole_shared.messages import RequestAborted
from anole_shared.topology import SCHEDULER

log = logging.getLogger(__name__)

_MAX_WAITING = 10_000
_RETRY_S = 1.0
_MAX_TRIES = 30
"""An abort that cannot be published for so long is given up: the sequence runs to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Abort:
    message: RequestAborted
    headers: Headers


class Aborts:
    """Publishes aborts from a task of its own: whoever aborts is mostly being cancelled itself."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._waiting: asyncio.Queue[_Abort] = asyncio.Queue(_MAX_WAITING)

    def put(self, message: RequestAborted, headers: Headers) -> None:
        """Have the abort published soon."""
        try:
            self._waiting.put_nowait(_Abort(message=message, headers=headers))
        except asyncio.QueueFull:
            log.warning("%d aborts wait already; %s is lost", _MAX_WAITING, message.request_id)

    async def run(self) -> None:
        """Publish, one by one, until cancelled."""
        while True:
            abort = await self._waiting.get()
            try:
                await self._publish(abort)
            finally:
                self._waiting.task_done()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is published, but not for ever."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._waiting.join()
        except TimeoutError:
            log.warning("%d aborts not published", self._waiting.qsize())

    async def _publish(self, abort: _Abort) -> None:
        for _ in range(_MAX_TRIES):
            try:
                await self._bus.publish(SCHEDULER, abort.message, abort.headers)
            except BusError as fault:
                log.warning("abort of %s: %s", abort.message.request_id, fault)
                await asyncio.sleep(_RETRY_S)
            else:
                return
