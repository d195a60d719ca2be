"""The policies that Anole runs with."""

from anole_scheduler.core.placement import Placement
from anole_scheduler.core.policies.adapter_affinity import AdapterAffinity
from anole_scheduler.core.policies.best import Best
from anole_scheduler.core.policies.fcfs import FirstComeFirstServed
from anole_scheduler.core.policies.fits import Fits
from anole_scheduler.core.policies.least_loaded import LeastLoaded
from anole_scheduler.core.policies.starts_now import StartsNow
from anole_scheduler.core.policies.stays import Stays
from anole_scheduler.core.scheduler import Policies


def standard() -> Policies:
    """First come, first served; where it starts at once, then by adapter, then by load."""
    return Policies(
        ordering=FirstComeFirstServed(),
        placement=Placement(
            filters=(Stays(), Fits()),
            scorers=(StartsNow(), AdapterAffinity(), LeastLoaded()),
            picker=Best(),
        ),
    )
