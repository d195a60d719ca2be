"""The listening socket: one memd a path, and only its own user and group come near it."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anole_shared.errors import ConfigurationError

_MAX_PATH_BYTES = 107
"""sun_path holds 108 with its closing zero, see unix(7)."""
_SOCKET_MODE = 0o660
_FOLDER_MODE = 0o750


@contextmanager
def listening(path: Path, backlog: int) -> Iterator[socket.socket]:
    """A non-blocking SOCK_SEQPACKET socket at path; the file is gone afterwards.

    A lock beside the socket tells a memd that lives from a socket file that a dead one left: the
    kernel drops the lock with its process.

    Raises:
        ConfigurationError: the path is too long, taken, or may not be written.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise ConfigurationError(
            f"{path} is longer than the {_MAX_PATH_BYTES} bytes that a unix socket's path may "
            "have: set ANOLE_MEMD_SOCKET to a shorter one"
        )
    lock = _lock(path)
    try:
        with _bind(path, backlog) as listener:
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    try:
        path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        raise _unusable(path, fault) from fault
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        os.close(lock)
        if fault.errno != errno.EWOULDBLOCK:
            raise _unusable(path, fault) from fault
        raise ConfigurationError(
            f"another memd serves {path}: one is enough for a host; stop it first, or give this "
            "one another ANOLE_MEMD_SOCKET"
        ) from None
    return lock


def _bind(path: Path, backlog: int) -> socket.socket:
    if path.exists() and not path.is_socket():
        raise ConfigurationError(
            f"{path} is a file, not a socket: move it away, or set ANOLE_MEMD_SOCKET"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listener.listen(backlog)
    except OSError as fault:
        listener.close()
        raise _unusable(path, fault) from fault
    return listener


def _unusable(path: Path, fault: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"memd cannot listen at {path} ({fault.strerror}): set ANOLE_MEMD_SOCKET to a path that "
        "this user may write"
    )
