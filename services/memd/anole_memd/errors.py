"""What memd finds wrong.

AnoleError
+-- LeaseRefused
|   +-- BadRegionSize       no region is that small, or ever that big
|   +-- OverBudget          not now: too much is leased
|   +-- TooManyLeases       one connection holds as many as it may
|   +-- NoRegion            the kernel gave none
+-- MemdUnavailable         nobody answers on the socket
"""

from anole_shared.errors import AnoleError


class LeaseRefused(AnoleError):
    """No lease; the message is the reason that the worker is told."""

    retryable = True


class BadRegionSize(LeaseRefused):
    """A size that can never be leased."""

    retryable = False


class OverBudget(LeaseRefused):
    """The region does not fit into what is left of the budget."""


class TooManyLeases(LeaseRefused):
    """The connection holds as many leases as one may."""


class NoRegion(LeaseRefused):
    """The kernel did not make the region."""


class MemdUnavailable(AnoleError):
    """No memd answers on the socket."""

    retryable = True
