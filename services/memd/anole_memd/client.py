"""MemdClient: one connection to a running memd, for commands, checks and sandboxes. It blocks."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from anole_memd.errors import MemdRefused, MemdUnavailable
from anole_shared.codec import encode
from anole_shared.errors import MessageError
from anole_shared.ids import LeaseId, RegionId
from anole_shared.memory_socket import receive
from anole_shared.messages import (
    LeaseDenied,
    LeaseEnded,
    LeaseGranted,
    LeaseReleased,
    LeaseRenewed,
    LeaseRequested,
    MemoryMessage,
    MemoryRefused,
    MemoryStatusReported,
    MemoryStatusRequested,
    PlugRequested,
    RegionReport,
    RegionsReported,
    RegionsRequested,
    RegionUnplugged,
    UnplugRequested,
    WatchRequested,
)

AnswerT = TypeVar("AnswerT", bound=MemoryMessage)


class MemdClient:
    """Asks and is answered, in turn."""

    def __init__(self, socket_path: Path, *, timeout_s: float = 10) -> None:
        """Connect.

        Raises:
            MemdUnavailable: nobody listens there.
        """
        self._path = socket_path
        self._timeout_s = timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(socket_path))
        except OSError as fault:
            self._socket.close()
            raise self._unavailable(fault) from fault

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def status(self) -> MemoryStatusReported:
        """The sizes of this host's memory."""
        return self._ask(MemoryStatusRequested(), MemoryStatusReported)

    def regions(self) -> Iterator[RegionReport]:
        """Every region that is not absent."""
        num_told, has_more = 0, True
        while has_more:
            answer = self._ask(RegionsRequested(skip=num_told), RegionsReported)
            yield from answer.regions
            num_told += len(answer.regions)
            has_more = answer.has_more

    def plug(self, num_bytes: int) -> RegionReport:
        """Have a region plugged that holds so much."""
        return self._ask(PlugRequested(num_bytes=num_bytes), RegionsReported).regions[0]

    def unplug(self, region_id: RegionId, *, force: bool = False) -> int:
        """Have a region given back; how many bytes came."""
        return self._ask(
            UnplugRequested(region_id=region_id, force=force), RegionUnplugged
        ).num_bytes

    def lease(
        self,
        num_bytes: int,
        *,
        label: str,
        purpose: str,
        ttl_s: float | None = None,
        wait_s: float = 0.0,
    ) -> tuple[LeaseGranted, int | None]:
        """Lease a region for this process; what memd says, and the descriptor if it is one.

        wait_s: for how long to wait for room, behind those who came before.
        """
        request = LeaseRequested(
            num_bytes=num_bytes, holder=label, purpose=purpose, ttl_s=ttl_s, wait_s=wait_s
        )
        self._socket.settimeout(self._timeout_s + wait_s)
        try:
            answer, descriptor = self._exchange(request)
        finally:
            self._socket.settimeout(self._timeout_s)
        return self._checked(answer, LeaseGranted), descriptor

    def renew(self, lease_id: LeaseId, ttl_s: float | None) -> None:
        """Move the end of anybody's lease."""
        self._ask(LeaseRenewed(lease_id=lease_id, ttl_s=ttl_s, of_others=True), LeaseRenewed)

    def release(self, lease_id: LeaseId, *, force: bool = False) -> None:
        """End anybody's lease."""
        self._ask(LeaseReleased(lease_id=lease_id, force=force, of_others=True), LeaseEnded)

    def watch(self) -> Iterator[MemoryStatusReported]:
        """The sizes now, and after every change, for ever."""
        yield self._ask(WatchRequested(), MemoryStatusReported)
        self._socket.settimeout(None)
        while True:
            yield self._checked(self._receive()[0], MemoryStatusReported)

    def _ask(self, message: MemoryMessage, wanted: type[AnswerT]) -> AnswerT:
        answer, descriptor = self._exchange(message)
        if descriptor is not None:
            os.close(descriptor)
        return self._checked(answer, wanted)

    def _checked(self, answer: MemoryMessage, wanted: type[AnswerT]) -> AnswerT:
        if isinstance(answer, LeaseDenied | MemoryRefused):
            raise MemdRefused(answer.reason)
        if not isinstance(answer, wanted):
            raise MemdUnavailable(
                f"{self._path} answered with {answer.type}: it is no memd of ours"
            )
        return answer

    def _exchange(self, message: MemoryMessage) -> tuple[MemoryMessage, int | None]:
        try:
            self._socket.send(encode(message))
        except BrokenPipeError:
            pass  # what memd had to say before it hung up can still be read
        except OSError as fault:
            raise self._unavailable(fault) from fault
        return self._receive()

    def _receive(self) -> tuple[MemoryMessage, int | None]:
        try:
            return receive(self._socket)
        except (OSError, MessageError) as fault:
            raise self._unavailable(fault) from fault

    def _unavailable(self, fault: Exception) -> MemdUnavailable:
        return MemdUnavailable(
            f"no memd answers at {self._path} ({fault}): start it with `anole memd`, or set "
            "ANOLE_MEMD_SOCKET to where it listens"
        )
