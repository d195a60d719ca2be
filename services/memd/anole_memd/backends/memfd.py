"""Regions as memfds: anonymous shared memory that is gone with its last holder."""

import fcntl
import os
import resource

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str, num_bytes: int) -> int:
    """The descriptor of a new region: empty pages, taken from the kernel when first written.

    It is sealed against any change of size, so that no holder can take pages away from under
    another's mapping (which would end that process with SIGBUS) or grow the region over its lease.

    Args:
        name: what /proc/<pid>/maps and fd call it, behind "memfd:anole-".
        num_bytes: whole huge pages.

    Raises:
        OSError: too many open files, or no memory for the kernel's own records.
    """
    descriptor = os.memfd_create(f"anole-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, num_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def raise_descriptor_limit() -> int:
    """Allow this process as many open files as it may have at all; returns how many.

    memd keeps one descriptor a lease, and the soft limit is 1024 on most systems.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
