"""What memd finds wrong.

AnoleError
+-- LeaseRefused
|   +-- BadRegionSize       no region is that small, or ever that big
|   +-- OverBudget          not now: too much is leased
|   +-- TooManyLeases       one connection holds as many as it may
|   +-- NoRegion            the backend gave none
|   +-- JournalFull         the disk has no room for the journal
+-- BackendError            a kernel or a hypervisor, see backend.py
|   +-- BackendUnavailable  this backend cannot work on this host
|   +-- RegionBusy          pages are in use
|   +-- PartialUnplug       some of the region came back
|   +-- BackendSilent       no answer in time
|   +-- RegionRefused       the answer is no
+-- BadRecord               a journal's line that no ledger can have decided
+-- MemdUnavailable         nobody answers on the socket
+-- MemdRefused             memd answers no to an operator
+-- SandboxUnavailable      this host cannot confine a program's memory
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
    """The backend did not make the region."""


class BackendError(AnoleError):
    """A backend's call failed."""

    retryable = True


class BackendUnavailable(BackendError):
    """This backend cannot work on this host."""

    retryable = False

    def __init__(self, reason: str, remedy: str) -> None:
        """remedy: what the operator can do about it, as an imperative sentence."""
        super().__init__(f"{reason}: {remedy}")
        self.reason = reason
        self.remedy = remedy


class RegionBusy(BackendError):
    """Pages of the region are in use."""


class PartialUnplug(BackendError):
    """Some of the region's memory came back, and some did not."""

    def __init__(self, message: str, *, num_bytes: int, left_bytes: int) -> None:
        """num_bytes: what came back in this call. left_bytes: what is still plugged."""
        super().__init__(message)
        self.num_bytes = num_bytes
        self.left_bytes = left_bytes


class BackendSilent(BackendError):
    """The kernel or the hypervisor did not answer in time; what it has done is not known."""


class RegionRefused(BackendError):
    """The kernel or the hypervisor refused; the message has its reason."""


class BadRecord(AnoleError):
    """A record that no ledger in this state can have decided: the journal was tampered with."""


class JournalFull(LeaseRefused):
    """The disk has no room for the journal, so nothing can be granted; what stands stands."""


class MemdUnavailable(AnoleError):
    """No memd answers on the socket."""

    retryable = True


class MemdRefused(AnoleError):
    """What memd answers where it does not do what was asked; the message has its reason."""


class SandboxUnavailable(AnoleError):
    """This host cannot confine a program's memory; the message says what is missing."""
