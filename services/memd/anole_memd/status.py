"""Asking a running memd how it stands: health checks and people."""

import socket
from pathlib import Path

from anole_memd.errors import MemdUnavailable
from anole_shared.codec import decode_memory, encode
from anole_shared.errors import MessageError
from anole_shared.messages import MAX_DATAGRAM_BYTES, MemoryStatusReported, MemoryStatusRequested


def memory_status(socket_path: Path, timeout_s: float) -> MemoryStatusReported:
    """How much memory the memd at socket_path has, and how much of it is leased. Blocks.

    Raises:
        MemdUnavailable: nobody listens there, or does not answer within timeout_s.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(socket_path))
            connection.send(encode(MemoryStatusRequested()))
            answer = decode_memory(connection.recv(MAX_DATAGRAM_BYTES + 1))
    except (OSError, MessageError) as fault:
        raise MemdUnavailable(
            f"no memd answers at {socket_path} ({fault}): start it with `anole memd`, or set "
            "ANOLE_MEMD_SOCKET to where it listens"
        ) from fault
    if not isinstance(answer, MemoryStatusReported):
        raise MemdUnavailable(f"{socket_path} answered with {answer.type}: it is no memd of ours")
    return answer
