"""The worker's side of memd's socket: memory under a lease, mapped into this process."""

import fcntl
import logging
import mmap
import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from anole_shared.codec import encode
from anole_shared.errors import AnoleError, MessageError
from anole_shared.ids import LeaseId
from anole_shared.memory_socket import receive
from anole_shared.messages import (
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRequested,
    MemoryMessage,
    MemoryStatusReported,
    MemoryStatusRequested,
)

log = logging.getLogger(__name__)


class LeaseRefused(AnoleError):
    """No region; the message says why. There can be room once others are released."""

    retryable = True


class MemdUnavailable(AnoleError):
    """No memd answers on the socket, or what answers there does not keep to the protocol."""

    retryable = True


class RegionInUse(AnoleError):
    """The region is still viewed, so it stays mapped and leased: drop every view, then retry."""

    retryable = True


class Region:
    """Leased memory, mapped into this process; zero until written."""

    def __init__(
        self, lease: LeaseGranted, mapping: mmap.mmap, end_lease: Callable[[LeaseId], None]
    ) -> None:
        self.lease_id: LeaseId = lease.lease_id
        self.num_bytes: int = lease.num_bytes
        """At least what was asked for."""
        self._mapping = mapping
        self._end_lease = end_lease

    @property
    def buffer(self) -> memoryview:
        """The memory, as a new view; the region cannot be released while a view of it lives.

        torch.frombuffer(region.buffer, ...) keeps its view for as long as any tensor needs it. The
        mapping itself is not given out: torch does not hold a mapping's buffer, so that releasing
        it would leave tensors which point at nothing.
        """
        return memoryview(self._mapping)

    def release(self) -> None:
        """Unmap, then end the lease; once that is done, further calls do nothing.

        Where memd does not answer, this only unmaps: memd notices that by itself.

        Raises:
            RegionInUse: a view or a tensor still points into the region; nothing has changed.
        """
        if self._mapping.closed:
            return
        try:
            self._mapping.close()
        except BufferError:
            raise RegionInUse(
                f"{self.lease_id} ({self.num_bytes} bytes) is still viewed by a tensor or another "
                "buffer: drop those, then release it again"
            ) from None
        self._end_lease(self.lease_id)


class RegionClient:
    """Leases regions from the host's memd. Every call blocks, for timeout_s or little more.

    Calls from several threads are served one after the other. The connection is made at the first
    lease, and made anew when memd has been restarted; regions that were mapped before stay valid.
    """

    def __init__(self, socket_path: Path, holder: str, *, timeout_s: float = 10) -> None:
        """holder: this worker's id, for memd's logs."""
        self._socket_path = socket_path
        self._holder = holder
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None
        self._is_closed = False

    def lease(self, num_bytes: int, *, purpose: str, headers: Mapping[str, str]) -> Region:
        """A region of at least num_bytes.

        Args:
            num_bytes: at least 1; memd rounds up to whole huge pages.
            purpose: what for, for people to read: an adapter's id.
            headers: trace context of the load that needs the region.

        Raises:
            LeaseRefused: memd has no room, or this process cannot map what it was given.
            MemdUnavailable: there is no memd, it does not answer, or this client is closed.
        """
        request = LeaseRequested(
            num_bytes=num_bytes, holder=self._holder, purpose=purpose, headers=dict(headers)
        )
        with self._lock:
            connection = self._connected()
            answer, descriptor = self._ask(connection, request)
            try:
                return self._region(connection, answer, descriptor, num_bytes)
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def check(self) -> None:
        """Ask memd for a sign of life.

        Raises:
            MemdUnavailable: there is no memd, it does not answer, or this client is closed.
        """
        with self._lock:
            answer, descriptor = self._ask(self._connected(), MemoryStatusRequested())
            if descriptor is not None:
                os.close(descriptor)
            if not isinstance(answer, MemoryStatusReported):
                self._drop()
                raise MemdUnavailable(f"{self._socket_path} answered {answer.type}: it is no memd")

    def close(self) -> None:
        """End the connection; mapped regions stay valid, and leased, until they are released.

        May be called from any thread; waits for the call that another thread is in.
        """
        with self._lock:
            self._is_closed = True
            self._drop()

    def _connected(self) -> socket.socket:
        if self._is_closed:
            raise MemdUnavailable("the region client is closed: its worker is stopping")
        if self._connection is not None and _is_gone(self._connection):
            log.warning("memd is gone or was restarted: connecting anew")
            self._drop()
        if self._connection is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            connection.settimeout(self._timeout_s)
            try:
                connection.connect(str(self._socket_path))
            except OSError as fault:
                connection.close()
                raise MemdUnavailable(
                    f"no memd at {self._socket_path} ({fault}): start it with `anole memd`, or "
                    "set ANOLE_MEMD_SOCKET to where it listens"
                ) from fault
            self._connection = connection
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(
        self, connection: socket.socket, message: MemoryMessage
    ) -> tuple[MemoryMessage, int | None]:
        """The answer, and the descriptor that came with it. The connection is dropped if none."""
        try:
            connection.send(encode(message))
            return receive(connection)
        except (OSError, MessageError) as fault:
            self._drop()
            raise MemdUnavailable(
                f"memd at {self._socket_path} did not answer {message.type} ({fault}): its log "
                "says why; start it with `anole memd` if it is gone"
            ) from fault

    def _region(
        self,
        connection: socket.socket,
        answer: MemoryMessage,
        descriptor: int | None,
        num_bytes: int,
    ) -> Region:
        if isinstance(answer, LeaseDenied):
            raise LeaseRefused(answer.reason)
        if not isinstance(answer, LeaseGranted) or answer.num_bytes < num_bytes:
            self._drop()
            raise MemdUnavailable(f"{self._socket_path} answered a lease request with {answer}")
        try:
            mapping = _map(descriptor, answer.num_bytes)
        except OSError as fault:
            self._end(connection, answer.lease_id)
            raise LeaseRefused(f"a granted region cannot be mapped: {fault}") from fault
        return Region(answer, mapping, self._end_lease)

    def _end_lease(self, lease_id: LeaseId) -> None:
        with self._lock:
            try:
                connection = self._connected()
            except MemdUnavailable as fault:
                log.info("%s is unmapped, memd is not told: %s", lease_id, fault)
                return
            self._end(connection, lease_id)

    def _end(self, connection: socket.socket, lease_id: LeaseId) -> None:
        try:
            answer, descriptor = self._ask(connection, LeaseReleased(lease_id=lease_id))
        except MemdUnavailable as fault:
            log.warning("%s is unmapped, memd is not told: %s", lease_id, fault)
            return
        if descriptor is not None:
            os.close(descriptor)
        if not isinstance(answer, LeaseEnded):
            log.warning("memd answered a release with %s: connection dropped", answer.type)
            self._drop()


def _is_gone(connection: socket.socket) -> bool:
    """Whether memd has closed its end: it never sends unasked, so there is nothing else to read."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _map(descriptor: int | None, num_bytes: int) -> mmap.mmap:
    """Map the region, once sure that all of it stays there: a page that goes kills with SIGBUS.

    Raises:
        OSError: no descriptor came, it is no region of memd's, or the kernel refuses to map it.
    """
    if descriptor is None:
        raise OSError("its descriptor did not come through; has this process too many open files?")
    if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise OSError("it is not sealed, so it could shrink under this process")
    if os.fstat(descriptor).st_size < num_bytes:
        raise OSError("it is smaller than memd says")
    mapping = mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_SHARED)
    try:
        mapping.madvise(mmap.MADV_HUGEPAGE)
    except OSError as fault:
        log.debug("no huge pages for regions: %s", fault)
    return mapping
