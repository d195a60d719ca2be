"""Carries out what the scheduler decides about requests: tells workers and gateways."""

import asyncio
import logging
from collections.abc import Mapping
from typing import assert_never

from anole_scheduler.core.commands import (
    AbortSequence,
    Admit,
    Adopt,
    Done,
    Fail,
    Prefetch,
    RequestCommand,
)
from anole_scheduler.core.events import WorkerGone
from anole_scheduler.custody import Custody
from anole_scheduler.translate import failed_of, sequence_of
from anole_shared.bus import Bus
from anole_shared.errors import BusUnavailable, QueueFull, Unroutable
from anole_shared.lifecycle import pause
from anole_shared.messages import AdapterPrefetchRequested, Message, SequenceAborted
from anole_shared.topology import Queue, gateway_queue, worker_queue

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.05
_LONGEST_RETRY_S = 2.0


class Courier:
    """One command at a time, so that everybody hears in the order in which it was decided."""

    def __init__(self, bus: Bus, custody: Custody, stop: asyncio.Event) -> None:
        self._bus = bus
        self._custody = custody
        self._stop = stop

    async def carry_out(self, command: RequestCommand) -> WorkerGone | None:
        """Do it; what it shows of the worker, if that cannot be told anything any more.

        Raises:
            BusUnavailable: it was time to stop, and the command is not carried out.
        """
        match command:
            case Admit() | AbortSequence() | Prefetch():
                return await self._tell_worker(command)
            case Adopt(request=request):
                log.info("request %s runs on %s already", request.request_id, command.worker_id)
                self._custody.admitted(
                    request.request_id, request.attempt, command.worker_id, residency=None
                )
            case Fail():
                await self._tell_gateway(command)
            case Done():
                await self._custody.done(command.request_id, command.attempt)
            case _:
                assert_never(command)
        return None

    async def _tell_worker(self, command: Admit | AbortSequence | Prefetch) -> WorkerGone | None:
        message, headers = self._message_of(command)
        try:
            await self._publish(worker_queue(command.worker_id), message, headers)
        except Unroutable:
            return WorkerGone(worker_id=command.worker_id, reason="its queue is gone")
        except QueueFull:
            return WorkerGone(worker_id=command.worker_id, reason="it does not read its messages")
        if isinstance(command, Admit):
            request = command.request
            self._custody.admitted(
                request.request_id, request.attempt, command.worker_id, command.residency
            )
        return None

    def _message_of(
        self, command: Admit | AbortSequence | Prefetch
    ) -> tuple[Message, Mapping[str, str]]:
        match command:
            case Admit(request=request):
                held = self._custody.get(request.request_id, request.attempt)
                return sequence_of(held.submitted), held.headers
            case AbortSequence(request_id=request_id, reason=reason):
                log.info("aborting %s on %s: %s", request_id, command.worker_id, reason)
                return SequenceAborted(request_id=request_id), {}
            case Prefetch(adapter_id=adapter_id):
                held = self._custody.get(command.request_id, command.attempt)
                return AdapterPrefetchRequested(adapter_id=adapter_id), held.headers
        assert_never(command)

    async def _tell_gateway(self, command: Fail) -> None:
        request = command.request
        message = failed_of(command)
        log.info("request %s fails (%s): %s", request.request_id, message.code, message.message)
        held = self._custody.get(request.request_id, request.attempt)
        await self._publish(gateway_queue(request.gateway_id), message, held.headers)
        self._custody.failed(request.request_id, request.attempt, message.code, message.message)

    async def _publish(self, queue: Queue, message: Message, headers: Mapping[str, str]) -> None:
        """Hand over, for as long as it takes: meanwhile nothing else is decided or told."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                await self._bus.publish(queue, message, headers)
            except BusUnavailable as fault:
                if self._stop.is_set():
                    raise
                if delay_s == _FIRST_RETRY_S:
                    log.warning("cannot publish, trying on: %s", fault)
            else:
                return
            await pause(self._stop, delay_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
