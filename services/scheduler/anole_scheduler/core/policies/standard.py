"""The policies that Anole can run with, by name."""

from collections.abc import Callable, Mapping

from anole_scheduler.core.placement import Placement
from anole_scheduler.core.policies.adapter_affinity import AdapterAffinity
from anole_scheduler.core.policies.best import Best
from anole_scheduler.core.policies.fcfs import FirstComeFirstServed
from anole_scheduler.core.policies.fits import Fits
from anole_scheduler.core.policies.knobs import PolicyKnobs
from anole_scheduler.core.policies.least_loaded import LeastLoaded
from anole_scheduler.core.policies.single_line import SingleLine
from anole_scheduler.core.policies.sjf import ShortestFirst
from anole_scheduler.core.policies.starts_now import StartsNow
from anole_scheduler.core.policy import Admission
from anole_scheduler.core.scheduler import Policies


def policies(name: str, knobs: PolicyKnobs | None = None) -> Policies:
    """The policies of that name, new: they belong to one scheduler.

    Raises:
        KeyError: there is none of that name.
    """
    return Policies(admission=ADMISSIONS[name](knobs or PolicyKnobs()), placement=_placement())


def _placement() -> Placement:
    """Where it starts at once, then by adapter, then by load."""
    return Placement(
        filters=(Fits(),),
        scorers=(StartsNow(), AdapterAffinity(), LeastLoaded()),
        picker=Best(),
    )


def _fcfs(knobs: PolicyKnobs) -> Admission:  # noqa: ARG001
    return SingleLine(FirstComeFirstServed())


def _sjf(knobs: PolicyKnobs) -> Admission:
    return SingleLine(ShortestFirst(knobs.ageing_tokens_per_s))


ADMISSIONS: Mapping[str, Callable[[PolicyKnobs], Admission]] = {
    "fcfs": _fcfs,
    "sjf": _sjf,
}
"""Every policy by its name."""
