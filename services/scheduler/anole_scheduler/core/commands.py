"""What the scheduler can ask of its shell. Commands are carried out in order."""

from dataclasses import dataclass
from enum import Enum, auto

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.request import Request
from anole_scheduler.core.residency import Residency
from anole_shared.ids import AdapterId, RequestId, WorkerId


class Failure(Enum):
    """Why a request gets no (further) answer."""

    QUEUE_FULL = auto()
    NO_WORKER = auto()
    TOO_LONG = auto()
    UNKNOWN_ADAPTER = auto()
    ADAPTER_TOO_LARGE = auto()
    WORKER_LOST = auto()
    SQUASHED = auto()
    """It was stopped for another; its gateway sends it again behind the tokens it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Give the request to the worker."""

    worker_id: WorkerId
    request: Request
    residency: Residency | None
    """Where the worker had the adapter when it was chosen; None for the base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """The worker runs the request already: an earlier scheduler admitted it."""

    worker_id: WorkerId
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class AbortSequence:
    """Tell the worker to stop the request."""

    worker_id: WorkerId
    request_id: RequestId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Tell the gateway that the request gets no (further) answer. Done follows."""

    request: Request
    failure: Failure
    message: str
    retry_after_s: float | None = None
    """When it may be worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """This attempt has ended: acknowledge it to the broker."""

    request_id: RequestId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefetch:
    """Ask the worker to load an adapter that a waiting request will need."""

    worker_id: WorkerId
    adapter_id: AdapterId
    request_id: RequestId
    """The request that will need it."""
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordWorker:
    """Show the worker in the store."""

    worker_id: WorkerId
    model: str
    capacity: Capacity
    num_running: int
    num_free_blocks: int
    resident: tuple[AdapterId, ...]
    loading: tuple[AdapterId, ...]
    host: tuple[AdapterId, ...] = ()
    is_draining: bool = False
    is_new: bool
    """Whether it was not known before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetWorker:
    """Remove the worker from the store."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseWorker:
    """Give the worker nothing; said once for as long as it keeps reporting."""

    worker_id: WorkerId
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordAdapter:
    """Show the adapter in the store."""

    adapter: Adapter


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetAdapter:
    """Remove the adapter from the store."""

    adapter_id: AdapterId
    reason: str


RequestCommand = Admit | Adopt | AbortSequence | Fail | Done | Prefetch
RecordCommand = RecordWorker | ForgetWorker | RecordAdapter | ForgetAdapter
Command = RequestCommand | RecordCommand | RefuseWorker
