"""The collections that the store holds, who writes each, and how long a record lives."""

from enum import StrEnum


class Collection(StrEnum):
    """A named set of records in the store; every key of Anole lies in one of these."""

    ADAPTERS = "adapters"
    """adapter id -> AdapterRecord as JSON. Written by the scheduler; no expiry."""
    WORKERS = "workers"
    """worker id -> WorkerRecord as JSON: its room, and where it has which adapters. Written by the
    scheduler at each report; lives LEASE_S."""
    SCHEDULERS = "schedulers"
    """scheduler id -> SchedulerRecord as JSON. Written by the active one every RENEW_S; lives
    LEASE_S."""
    SERVICES = "services"
    """"<kind>:<id>" -> ServiceRecord as JSON. Written by each service itself; lives LEASE_S."""


class Role(StrEnum):
    """What one process at a time does for all; the store counts its terms."""

    SCHEDULER = "scheduler"
    """Held by the scheduler that the broker serves."""


LEASE_S = 10.0
"""How long a liveness record outlives its last renewal."""

RENEW_S = 2.0
"""How often a live service renews its record; several renewals may be lost before it lapses."""
