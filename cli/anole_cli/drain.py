"""`anole drain WORKER`: have one worker leave without losing a request."""

import argparse
import asyncio

from anole_cli.flags import read
from anole_shared.errors import ConfigurationError, Unroutable
from anole_shared.ids import WorkerId
from anole_shared.keys import Collection
from anole_shared.lifecycle import Resources, resources
from anole_shared.messages import WorkerDrainRequested
from anole_shared.settings import CommonSettings
from anole_shared.topology import worker_queue


def run(arguments: argparse.Namespace) -> int:
    """Tell the worker; it leaves by itself."""
    common = read(CommonSettings, arguments)
    if common.amqp_url is None or common.redis_url is None:
        raise ConfigurationError(
            "ANOLE_AMQP_URL and ANOLE_REDIS_URL are unset: the worker of an embedded Anole drains "
            "when its process is stopped"
        )
    asyncio.run(_drain(common, WorkerId(arguments.worker)))
    return 0


async def _drain(common: CommonSettings, worker_id: WorkerId) -> None:
    async with resources(common) as given:
        try:
            await given.bus.publish(worker_queue(worker_id), WorkerDrainRequested(), {})
        except Unroutable:
            raise ConfigurationError(await _unknown(given, worker_id)) from None
    print(
        f"{worker_id} takes nothing more; it ends when its sequences have, at the latest after its "
        "ANOLE_WORKER_DRAIN_S"
    )


async def _unknown(given: Resources, worker_id: WorkerId) -> str:
    known = sorted(await given.store.all(Collection.WORKERS))
    return f"there is no worker {worker_id!r}; there are: {', '.join(known) or 'none'}"
