"""Why a request can never run on the workers that are known."""

from collections.abc import Sequence
from dataclasses import dataclass

from anole_scheduler.core.adapter import Adapter
from anole_scheduler.core.commands import Failure
from anole_scheduler.core.registry import Registry
from anole_scheduler.core.request import Request
from anole_scheduler.core.worker import Worker
from anole_shared.ids import AdapterId

_RETRY_AFTER_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What to tell the client instead of an answer."""

    failure: Failure
    message: str
    retry_after_s: float | None = None


def refusal_of(request: Request, workers: Sequence[Worker], registry: Registry) -> Refusal | None:
    """The obstacle that waiting does not remove; None where one of the workers can run it.

    Without any worker nothing is known, and the request waits for one. Workers that drain do not
    count, unless all do: then their successors are likely to be like them.
    """
    if not workers:
        return None
    recorded = registry.get(request.adapter_id) if request.adapter_id else None
    for worker in workers:
        if not worker.is_draining and worker.can_ever_run(request, recorded):
            return None
    return _obstacle(request, workers, recorded)


def _obstacle(
    request: Request, workers: Sequence[Worker], recorded: Adapter | None
) -> Refusal | None:
    """A thorough look, where none that stays can run it."""
    staying = [worker for worker in workers if not worker.is_draining]
    if not staying and any(worker.can_ever_run(request, recorded) for worker in workers):
        return None
    workers = staying or workers
    if request.adapter_id is not None:
        having = [worker for worker in workers if _has(worker, request.adapter_id)]
        if not having:
            return _absent(request.adapter_id, recorded, len(workers))
        workers = having
    longest = max(worker.longest(request.adapter_id, recorded) for worker in workers)
    return _too_long(request, longest) if longest > 0 else _too_large(request, workers)


def _has(worker: Worker, adapter_id: AdapterId) -> bool:
    if worker.folder is None:
        return True
    adapter = worker.folder.get(adapter_id)
    return adapter is not None and adapter.refused is None


def _absent(adapter_id: AdapterId, adapter: Adapter | None, num_workers: int) -> Refusal:
    if adapter is None:
        return Refusal(
            failure=Failure.UNKNOWN_ADAPTER,
            message=f"there is no adapter {adapter_id!r}: it is in no worker's adapter folder",
        )
    if adapter.refused is not None:
        return Refusal(
            failure=Failure.UNKNOWN_ADAPTER,
            message=f"the adapter {adapter_id!r} cannot be served: {adapter.refused}",
        )
    return Refusal(
        failure=Failure.NO_WORKER,
        message=f"none of the {num_workers} connected workers has the adapter {adapter_id!r}; "
        "one that had it has left: start it again",
        retry_after_s=_RETRY_AFTER_S,
    )


def _too_long(request: Request, longest: int) -> Refusal:
    return Refusal(
        failure=Failure.TOO_LONG,
        message=f"the prompt has {request.num_prompt_tokens} tokens and max_tokens is "
        f"{request.max_tokens}, together {request.max_len}; no worker takes more than {longest}: "
        "shorten the prompt or lower max_tokens",
    )


def _too_large(request: Request, workers: Sequence[Worker]) -> Refusal:
    roomiest = max(worker.capacity.memory_bytes for worker in workers)
    return Refusal(
        failure=Failure.ADAPTER_TOO_LARGE,
        message=f"the adapter {request.adapter_id!r} leaves no room for a block of tokens in "
        f"the {roomiest} bytes that a worker has: raise ANOLE_WORKER_MEMORY_BYTES",
    )
