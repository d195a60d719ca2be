"""What can happen to the scheduler."""

from collections.abc import Sequence
from dataclasses import dataclass

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_shared.ids import AdapterId, GatewayId, RequestId, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestArrived:
    """A gateway wants a request run."""

    request: Request
    redelivered: bool = False
    """Whether it may have come before, perhaps to an earlier scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCancelled:
    """Nobody waits for a request any more."""

    request_id: RequestId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayGone:
    """Nobody waits for any of its requests any more."""

    gateway_id: GatewayId


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceEnded:
    """A request holds nothing at that worker any more."""

    worker_id: WorkerId
    request_id: RequestId
    attempt: int
    num_output_tokens: int
    """Of this attempt."""
    was_finished: bool = True
    """Whether it ran to its end; not if it was aborted, or the worker could not run it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceReturned:
    """A worker that drains has not begun a request and gives it back."""

    worker_id: WorkerId
    request_id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSeen:
    """A worker reports."""

    worker_id: WorkerId
    model: str
    capacity: Capacity
    running: Sequence[RequestId]
    """Everything that it was given and has not ended, those that started first."""
    num_free_blocks: int
    """All blocks of its memory less those that sequences own, whatever adapters take."""
    resident: Sequence[AdapterId]
    loading: Sequence[AdapterId] = ()
    host: Sequence[AdapterId] = ()
    """Adapters in its host's memory alone."""
    is_draining: bool = False
    """It finishes what it has and takes nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGone:
    """A worker has left, or nothing can be told to it any more."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersFound:
    """All adapters in a worker's folder, those that it refuses included."""

    worker_id: WorkerId
    adapters: Sequence[Adapter]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMoved:
    """An adapter's weights have come to a worker, or gone."""

    worker_id: WorkerId
    adapter_id: AdapterId
    residency: Residency


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """This scheduler begins, and an earlier one has left this.

    What the workers ran and had free is not part of it: they say so themselves, soon.
    """

    adapters: Sequence[Adapter]
    workers: Sequence[WorkerSeen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time has passed; comes several times a second."""


RequestEvent = RequestArrived | RequestCancelled | GatewayGone | SequenceEnded | SequenceReturned
WorkerEvent = WorkerSeen | WorkerGone | AdaptersFound | AdapterMoved
Event = RequestEvent | WorkerEvent | Recalled | Tick
