"""Who is at the other end of a connection, as the kernel says (unix(7), SO_PEERCRED)."""

import os
import select
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from anole_memd.backends import processes
from anole_memd.core.lease import Holder

_SO_PEERPIDFD = 77  # Linux 6.5; not in Python's socket module
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A process, and as whom it connected."""

    holder: Holder
    uid: int


def peer_of(connection: socket.socket, number: int, proc: Path = processes.PROC) -> Peer:
    """The process that connected.

    number: of the connection; stands for a process that this one cannot see.
    """
    content = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(content)
    started = processes.start_ticks(pid, proc) if pid else None
    if started is None or _has_ended(connection):
        return Peer(holder=Holder(pid=0, started=number), uid=uid)
    return Peer(holder=Holder(pid=pid, started=started), uid=uid)


def _has_ended(connection: socket.socket) -> bool:
    """Whether the process has ended, so that its id may be another's by now."""
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return False  # an older kernel: an id is not used again within moments
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)
