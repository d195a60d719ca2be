"""The states of an adapter on a worker."""

import pytest

from anole_scheduler.core.residency import TRANSITIONS, Presence, Residency
from anole_scheduler.core.transition import InvalidTransition


@pytest.mark.parametrize("after", Residency)
@pytest.mark.parametrize("before", Residency)
def test_an_adapter_changes_state_only_as_the_table_says(
    before: Residency, after: Residency
) -> None:
    presence = Presence(residency=before, since_s=0.0)
    if after in TRANSITIONS[before]:
        presence.move_to(after, 7.0)
        assert (presence.residency, presence.since_s) == (after, 7.0)
    else:
        with pytest.raises(InvalidTransition):
            presence.move_to(after, 7.0)


@pytest.mark.parametrize("after", Residency)
@pytest.mark.parametrize("before", Residency)
def test_what_a_worker_says_is_believed_whatever_was_believed_before(
    before: Residency, after: Residency
) -> None:
    presence = Presence(residency=before, since_s=0.0)
    presence.observe(after, 7.0)
    assert presence.residency is after


def test_hearing_the_same_again_does_not_make_it_newer() -> None:
    presence = Presence(residency=Residency.LOADING, since_s=3.0)
    presence.observe(Residency.LOADING, 7.0)
    assert presence.since_s == 3.0
