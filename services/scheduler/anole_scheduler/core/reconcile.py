"""What a worker reports, held against what it was given."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anole_scheduler.core.ended import EndedRequests
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.request import Progress, RequestState
from anole_scheduler.core.worker import Worker
from anole_shared.ids import RequestId


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Where the two differ."""

    found: list[Progress]
    """Waits here, runs there: an earlier scheduler admitted it."""
    lost: list[Progress]
    """Was given to the worker long ago, and the worker does not have it."""
    foreign: list[RequestId]
    """Runs there and was not given to it by this scheduler."""
    strays: list[tuple[RequestId, str]]
    """The foreign ones that are to be aborted, and why."""


def compare(
    worker: Worker,
    running: Iterable[RequestId],
    *,
    requests: Mapping[RequestId, Progress],
    ended: EndedRequests,
    limits: Limits,
    now: float,
) -> Findings:
    """Look through one report. Changes nothing."""
    found: list[Progress] = []
    foreign: list[RequestId] = []
    strays: list[tuple[RequestId, str]] = []
    reported = dict.fromkeys(running)
    for request_id in reported:
        if worker.has(request_id):
            continue
        progress = requests.get(request_id)
        if progress is not None and can_be_running(progress, ended):
            found.append(progress)
            continue
        foreign.append(request_id)
        since_s = worker.foreign.get(request_id, now)
        reason = _why_abort(progress, request_id in ended, now - since_s, limits)
        if reason is not None:
            strays.append((request_id, reason))
    missing = (
        requests[request_id] for request_id in worker.admitted() if request_id not in reported
    )
    lost = [progress for progress in missing if now - progress.admitted_s > limits.lost_after_s]
    return Findings(found=found, lost=lost, foreign=foreign, strays=strays)


def can_be_running(progress: Progress, ended: EndedRequests) -> bool:
    """Whether a worker may be at this very attempt although it was not admitted here.

    Only one that came before can have been admitted before; and where an older attempt ended under
    this scheduler, it is that one which the worker still has.
    """
    return (
        progress.state is RequestState.WAITING
        and progress.redelivered
        and progress.request.request_id not in ended
    )


def _why_abort(
    progress: Progress | None, has_ended: bool, foreign_s: float, limits: Limits
) -> str | None:
    if progress is not None:
        return "it is an attempt that was given up; a later one is under way"
    if has_ended:
        return "it was given up"
    if foreign_s > limits.orphan_timeout_s:
        return f"nobody has asked for it in {foreign_s:.0f} s"
    return None
