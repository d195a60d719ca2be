"""Every queue of Anole: its name, its guarantees and its limits. Nothing else names a queue."""

from dataclasses import dataclass

from anole_shared.ids import GatewayId, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue and what it promises. Both bus implementations keep these promises."""

    name: str
    durable: bool
    """Survives broker restarts; messages are persistent and confirmed to the publisher.
    Otherwise the queue belongs to its one consumer and goes when the consumer goes."""
    acknowledged: bool
    """The consumer must acknowledge; what it did not acknowledge is delivered again."""
    confirmed: bool
    """publish() returns once the queue has the message, and raises Unroutable or QueueFull.
    Otherwise a message to a queue that is gone is dropped silently."""
    max_length: int
    """Messages that may wait, not yet delivered; more are refused with QueueFull."""


SCHEDULER = Queue(
    name="anole.scheduler", durable=True, acknowledged=True, confirmed=True, max_length=100_000
)
"""All that the scheduler hears, in one order: requests, aborts, workers' reports.

A request stays unacknowledged until it has ended, so that the broker holds the durable copy. Only
one consumer at a time is served; the others stand by (RabbitMQ: x-single-active-consumer).
"""


def worker_queue(worker_id: WorkerId) -> Queue:
    """What the scheduler tells one worker. Gone with the worker, which is how loss is noticed."""
    return Queue(
        name=f"anole.worker.{worker_id}",
        durable=False,
        acknowledged=False,
        confirmed=True,
        max_length=10_000,
    )


def gateway_queue(gateway_id: GatewayId) -> Queue:
    """Tokens on their way back to one gateway's clients: one message per worker and step."""
    return Queue(
        name=f"anole.gateway.{gateway_id}",
        durable=False,
        acknowledged=False,
        confirmed=False,
        max_length=100_000,
    )
