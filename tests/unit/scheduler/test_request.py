"""The states of a request."""

import pytest

from anole_scheduler.core.request import TRANSITIONS, Progress, RequestState
from anole_scheduler.core.transition import InvalidTransition
from tests.unit.scheduler.playbook import request, waiting


def progress_in(state: RequestState) -> Progress:
    return waiting(state=state)


@pytest.mark.parametrize("after", RequestState)
@pytest.mark.parametrize("before", RequestState)
def test_a_request_changes_state_only_as_the_table_says(
    before: RequestState, after: RequestState
) -> None:
    progress = progress_in(before)
    if after in TRANSITIONS[before]:
        progress.move_to(after)
        assert progress.state is after
    else:
        with pytest.raises(InvalidTransition, match=f"{before.name} to {after.name}"):
            progress.move_to(after)
        assert progress.state is before


def test_an_ended_request_stays_ended_and_each_state_can_reach_an_end() -> None:
    ends = {RequestState.FINISHED, RequestState.ABORTED, RequestState.FAILED}
    assert {state for state, after in TRANSITIONS.items() if not after} == ends
    assert TRANSITIONS.keys() == set(RequestState)


def test_a_request_can_come_to_hold_its_prompt_and_all_its_output() -> None:
    assert request(num_prompt_tokens=30, max_tokens=12).max_len == 42
