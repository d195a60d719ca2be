import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from anole_shared.codec import decode_memory, encode
from anole_shared.messages import (
    DemandReported,
    LeaseRevoked,
    MemoryMessage,
    MemoryRefused,
    MemoryStatusReported,
    RevocationAnswered,
)
from anole_worker import revocations
from anole_worker.revocations import Revocations

IN_USE = "the rest is in use"
STATUS = MemoryStatusReported(total_bytes=1, leased_bytes=0, num_leases=0)
ASKED = LeaseRevoked(revocation_id=7, num_bytes=100, deadline_s=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memd.sock"


@pytest.fixture
def memd(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    listener.bind(str(path))
    listener.listen()
    return listener


@asynccontextmanager
async def running(
    path: Path, give: int = 0, hangs: bool = False, fault: Exception | None = None
) -> AsyncIterator[None]:
    async def give_up(num_bytes: int) -> int:
        if fault is not None:
            raise fault
        if hangs:
            await asyncio.sleep(3600)
        return min(give, num_bytes)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(Revocations(path, lambda: 42, give_up).run())
        yield
        task.cancel()


async def accepted(memd: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(memd)
    return connection


async def heard(connection: socket.socket, kind: type[MemoryMessage]) -> MemoryMessage:
    async with asyncio.timeout(10):
        while True:
            datagram = await asyncio.get_running_loop().sock_recv(connection, 9999)
            message = decode_memory(datagram)
            if isinstance(message, kind):
                return message


async def test_demand_is_reported_at_once(memd: socket.socket, path: Path) -> None:
    async with running(path):
        with memd, await accepted(memd) as connection:
            assert await heard(connection, DemandReported) == DemandReported(used_bytes=42)


@pytest.mark.parametrize(
    ("give", "reason"),
    [(100, ""), (1000, ""), (60, "the rest is in use"), (0, "the rest is in use")],
)
async def test_what_was_given_is_answered(
    memd: socket.socket, path: Path, give: int, reason: str
) -> None:
    async with running(path, give):
        with memd, await accepted(memd) as connection:
            connection.send(
                encode(MemoryStatusReported(total_bytes=1, leased_bytes=0, num_leases=0))
            )
            connection.send(encode(ASKED))
            assert await heard(connection, RevocationAnswered) == RevocationAnswered(
                revocation_id=7, num_bytes=min(give, 100), reason=reason
            )


async def test_an_answer_comes_before_the_deadline_even_if_nothing_moves(
    memd: socket.socket, path: Path
) -> None:
    async with running(path, hangs=True):
        with memd, await accepted(memd) as connection:
            connection.send(encode(LeaseRevoked(revocation_id=8, num_bytes=1, deadline_s=0.1)))
            assert await heard(connection, RevocationAnswered) == RevocationAnswered(
                revocation_id=8, num_bytes=0, reason="the rest is in line behind loads"
            )


async def test_it_connects_again_after_memd_was_gone(
    memd: socket.socket, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocations, "_FIRST_PAUSE_S", 0.01)
    async with running(path):
        with memd:
            with await accepted(memd) as first:
                first.send(encode(MemoryRefused(reason="not you")))
            with await accepted(memd) as second:
                await heard(second, DemandReported)
            with await accepted(memd) as third:
                third.send(b"no message")
                await heard(third, DemandReported)
            with await accepted(memd) as fourth:
                await heard(fourth, DemandReported)


async def test_memory_that_cannot_be_given_back_is_an_answer_and_not_the_end(
    memd: socket.socket, path: Path
) -> None:
    async with running(path, fault=RuntimeError("the driver says no")):
        with memd, await accepted(memd) as connection:
            for _ in range(2):
                connection.send(encode(ASKED))
                assert await heard(connection, RevocationAnswered) == RevocationAnswered(
                    revocation_id=7, num_bytes=0, reason="the worker's log says why"
                )
