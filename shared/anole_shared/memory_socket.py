"""What comes over memd's socket, for whoever asks it: a message, perhaps with a descriptor."""

import os
import socket
from array import array

from anole_shared.codec import decode_memory
from anole_shared.errors import MessageError
from anole_shared.messages import MAX_DATAGRAM_BYTES, MemoryMessage

_ONE_DESCRIPTOR_BYTES = socket.CMSG_LEN(array("i").itemsize)


def receive(connection: socket.socket) -> tuple[MemoryMessage, int | None]:
    """The next message, and the descriptor that came with it, which is the caller's to close.

    Raises:
        OSError: the connection is broken, or was closed by memd.
        MessageError: what came is no message; its descriptor is closed.
    """
    datagram, ancillary, _, _ = connection.recvmsg(
        MAX_DATAGRAM_BYTES + 1, _ONE_DESCRIPTOR_BYTES, socket.MSG_CMSG_CLOEXEC
    )
    if not datagram:
        raise ConnectionResetError("it closed the connection")
    descriptors = array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data)
    try:
        return decode_memory(datagram), descriptors[0] if descriptors else None
    except MessageError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
