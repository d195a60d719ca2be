"""Which waiting request may be one that a worker runs already."""

import pytest

from anole_scheduler.core.ended import EndedRequests
from anole_scheduler.core.reconcile import can_be_running, compare
from anole_scheduler.core.request import RequestState
from anole_scheduler.core.worker import Worker
from tests.unit.scheduler.playbook import CAPACITY, LIMITS, waiting


@pytest.mark.parametrize("state", RequestState)
@pytest.mark.parametrize("redelivered", [False, True])
@pytest.mark.parametrize("older_ended", [False, True])
def test_only_a_redelivered_request_that_waits_can_be_running_already(
    state: RequestState, *, redelivered: bool, older_ended: bool
) -> None:
    ended = EndedRequests(8)
    if older_ended:
        ended.add_unknown("r1", 0)
    progress = waiting("r1", attempt=1, redelivered=redelivered, state=state)
    expected = state is RequestState.WAITING and redelivered and not older_ended
    assert can_be_running(progress, ended) == expected


def test_a_report_is_sorted_into_what_is_found_lost_foreign_and_stray() -> None:
    worker = Worker("w1", model="tiny", capacity=CAPACITY, admit_ahead=4, now=0.0)
    requests = {}
    for name, admitted_s in (("kept", 0.0), ("lost", 0.0), ("on its way", 95.0)):
        requests[name] = waiting(name, admitted_s=admitted_s)
        worker.admit(requests[name])
    requests["found"] = waiting("found", redelivered=True)
    worker.foreign = {"old": 0.0, "recent": 90.0}
    ended = EndedRequests(8)
    ended.add_unknown("given up", 0)
    findings = compare(
        worker,
        ["kept", "found", "old", "recent", "given up", "new"],
        requests=requests,
        ended=ended,
        limits=LIMITS,
        now=100.0,
    )
    assert findings.found == [requests["found"]]
    assert findings.lost == [requests["lost"]]
    assert findings.foreign == ["old", "recent", "given up", "new"]
    assert [name for name, _ in findings.strays] == ["old", "given up"]
