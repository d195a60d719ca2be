"""What workers say of themselves, and what is kept of it in the store."""

from dataclasses import dataclass
from typing import Literal

from anole_shared.ids import AdapterId, RequestId, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCapacity:
    """What one worker can hold at once."""

    max_num_seqs: int
    """Sequences in one step."""
    block_size: int
    """Tokens per KV block."""
    block_bytes: int
    memory_bytes: int
    """For KV blocks and adapters together."""
    max_model_len: int
    """Tokens of the longest sequence, prompt and output together."""

    @property
    def num_blocks(self) -> int:
        """KV blocks if there were no adapter."""
        return self.memory_bytes // self.block_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReported:
    """worker -> scheduler: I am here, and this is what I hold. Sent at start and every RENEW_S."""

    worker_id: WorkerId
    model: str
    """Name of the base model; all workers behind one scheduler serve the same."""
    capacity: WorkerCapacity
    running: tuple[RequestId, ...]
    """Every request that it was given and has not finished, in any state."""
    num_free_blocks: int
    resident: tuple[AdapterId, ...]
    """Adapters whose weights are in its memory."""
    type: Literal["worker.reported"] = "worker.reported"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLeft:
    """worker -> scheduler: I am stopping; what I still ran is lost."""

    worker_id: WorkerId
    type: Literal["worker.left"] = "worker.left"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """A worker as the store shows it to every service."""

    worker_id: WorkerId
    model: str
    capacity: WorkerCapacity
    num_running: int
    num_free_blocks: int
    resident: tuple[AdapterId, ...]
    loading: tuple[AdapterId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """A live service as the store shows it."""

    kind: str
    service_id: str
    host: str
    started_s: float
    """Unix time of its start."""
