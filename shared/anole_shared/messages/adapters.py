"""What travels about adapters: which exist, which are where."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from anole_shared.ids import AdapterId, WorkerId


class Residency(StrEnum):
    """Where an adapter's weights are, as one worker reports it."""

    ABSENT = "absent"
    HOST = "host"
    """In its host's memory, not on its device."""
    LOADING = "loading"
    RESIDENT = "resident"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An adapter as workers find it in the adapter folder and as the store keeps it."""

    adapter_id: AdapterId
    rank: int
    """The largest rank among its modules."""
    target_modules: tuple[str, ...]
    size_bytes: int
    """Its weights in the worker's memory."""
    generation: str
    """Hash of its content: a changed adapter is another one."""
    refused: str | None = None
    """Why it cannot be served, if it cannot; rank and size are then 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptersDiscovered:
    """worker -> scheduler: the adapters in my folder, those I refuse included."""

    worker_id: WorkerId
    adapters: tuple[AdapterRecord, ...]
    type: Literal["adapters.discovered"] = "adapters.discovered"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterResidencyChanged:
    """worker -> scheduler: this adapter's weights have come or gone."""

    worker_id: WorkerId
    adapter_id: AdapterId
    residency: Residency
    type: Literal["adapter.residency_changed"] = "adapter.residency_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPrefetchRequested:
    """scheduler -> worker: a waiting request will need this; load it if there is room."""

    adapter_id: AdapterId
    type: Literal["adapter.prefetch_requested"] = "adapter.prefetch_requested"
