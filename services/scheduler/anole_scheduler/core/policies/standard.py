"""The policies that Anole can run with, by name."""

from collections.abc import Callable, Mapping

from anole_scheduler.core.accounts import Accounts
from anole_scheduler.core.classes import SizeClasses, elbow, min_wcss
from anole_scheduler.core.knobs import ClassRule, PolicyKnobs, SizeRule
from anole_scheduler.core.pace import Pace
from anole_scheduler.core.placement import Placement
from anole_scheduler.core.policies.adapter_affinity import AdapterAffinity
from anole_scheduler.core.policies.best import Best
from anole_scheduler.core.policies.class_queues import ClassQueues
from anole_scheduler.core.policies.fcfs import FirstComeFirstServed
from anole_scheduler.core.policies.fits import Fits
from anole_scheduler.core.policies.least_loaded import LeastLoaded
from anole_scheduler.core.policies.resident_first import ResidentFirst
from anole_scheduler.core.policies.single_line import SingleLine
from anole_scheduler.core.policies.sjf import ShortestFirst
from anole_scheduler.core.policies.starts_now import StartsNow
from anole_scheduler.core.policies.virtual_deadline import Shares, VirtualDeadline
from anole_scheduler.core.policy import Admission
from anole_scheduler.core.scheduler import Policies
from anole_scheduler.core.size import OutputSize, Sizing, WeightedSize


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


def _chameleon(knobs: PolicyKnobs) -> Admission:
    sizing: Sizing = OutputSize()
    if knobs.size_rule is SizeRule.WEIGHTED:
        sizing = WeightedSize(knobs.input_weight, knobs.output_weight, knobs.rank_floor)
    classes = SizeClasses(
        sizing,
        {ClassRule.MIN_WCSS: min_wcss, ClassRule.ELBOW: elbow}[knobs.class_rule],
        max_classes=knobs.max_classes,
        refresh_s=knobs.refresh_s,
        min_sample=knobs.min_sample,
    )
    return ClassQueues(classes, Accounts(classes, knobs.charge_rule, knobs.slo_s), knobs)


def _anole(knobs: PolicyKnobs) -> Admission:
    pace, shares = Pace(), Shares()
    return ResidentFirst(
        VirtualDeadline(knobs.gamma, pace, shares),
        pace,
        shares,
        overtake_s=knobs.overtake_s,
        overtake_depth=knobs.overtake_depth,
    )


def _sjf(knobs: PolicyKnobs) -> Admission:
    return SingleLine(ShortestFirst(knobs.ageing_tokens_per_s))


ADMISSIONS: Mapping[str, Callable[[PolicyKnobs], Admission]] = {
    "fcfs": _fcfs,
    "sjf": _sjf,
    "chameleon": _chameleon,
    "anole": _anole,
}
"""Every policy by its name."""
