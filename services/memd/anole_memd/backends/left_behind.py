"""Calls that may hang in the kernel, each in a thread that is left behind when its time is over."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar, cast

from anole_memd.errors import BackendSilent

ResultT = TypeVar("ResultT")


async def in_time(call: Callable[[], ResultT], *, timeout_s: float, what: str) -> ResultT:
    """What call() returns or raises.

    asyncio's own threads would keep this process from ending until the kernel answers.

    Raises:
        BackendSilent: it has not returned within timeout_s; it may still do what it was told.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[ResultT] = loop.create_future()

    def settle(result: ResultT | None, fault: Exception | None) -> None:
        if outcome.done():
            return
        if fault is not None:
            outcome.set_exception(fault)
        else:
            outcome.set_result(cast("ResultT", result))

    def work() -> None:
        result, fault = None, None
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001 - it is raised again where it is waited for
            fault = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=work, name="memd.kernel", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            return await outcome
    except TimeoutError:
        raise BackendSilent(f"{what}: the kernel has not answered within {timeout_s:g} s") from None
