"""What a scheduler would be that decides nothing: sends each request on to the next worker.

ANOLE_AMQP_URL=amqp://... python -m bench.live_relay
"""

import asyncio
import sys
from itertools import cycle

from anole_scheduler.translate import sequence_of
from anole_shared.bus import Delivery
from anole_shared.bus_amqp import AmqpBus
from anole_shared.ids import RequestId, WorkerId
from anole_shared.messages import RequestSubmitted, SequenceFinished
from anole_shared.settings import CommonSettings, load
from anole_shared.topology import SCHEDULER, worker_queue

NUM_WORKERS = 4


def worker_id(number: int) -> WorkerId:
    """The name of one of the workers."""
    return WorkerId(f"bench-{number}")


async def _relay(url: str) -> None:
    bus = await AmqpBus.connect(url)
    workers = cycle(worker_id(number) for number in range(NUM_WORKERS))
    held: dict[RequestId, Delivery] = {}
    async with bus.consume(SCHEDULER, prefetch=2048) as deliveries:
        print("relay is ready", flush=True)
        async for delivery in deliveries:
            message = delivery.message
            if isinstance(message, RequestSubmitted):
                held[message.request_id] = delivery
                await bus.publish(worker_queue(next(workers)), sequence_of(message), {})
                continue
            if isinstance(message, SequenceFinished):
                await held.pop(message.request_id).ack()
            await delivery.ack()


def main() -> int:
    """Relay until it is ended."""
    url = load(CommonSettings).amqp_url
    assert url is not None, "set ANOLE_AMQP_URL"
    asyncio.run(_relay(url.get_secret_value()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
