import asyncio
import logging
import os
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from anole_memd.listener import listening
from anole_memd.server import Server
from anole_memd.tenants import Tenants
from anole_shared.codec import decode_memory, encode
from anole_shared.messages import (
    MAX_DATAGRAM_BYTES,
    LeaseGranted,
    LeaseRequested,
    MemoryMessage,
    MemoryRefused,
    MemoryStatusReported,
    MemoryStatusRequested,
    WatchRequested,
)
from anole_shared.units import HUGE_PAGE_BYTES
from tests.unit.memd.books import House, house, opened

STATUS = encode(MemoryStatusRequested())
LEASE = encode(LeaseRequested(num_bytes=1, holder="w", purpose="p"))
Connect = Callable[[], AbstractContextManager[socket.socket]]


@asynccontextmanager
async def serving(
    path: Path, max_connections: int = 4, uids: frozenset[int] = frozenset({os.getuid()})
) -> AsyncIterator[House]:
    memd = house(opened(path.with_name("journal"), 8 * HUGE_PAGE_BYTES))
    tenants = Tenants(memd.lessor, memd.revoker)
    with listening(path, 8) as listener:
        server = Server(
            listener,
            memd.desk,
            max_connections=max_connections,
            allowed_uids=uids,
            on_connected=tenants.connected,
            on_gone=tenants.gone,
        )
        memd.books.on_change = server.tell_watchers
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in (server.serve(), tenants.run())]
            yield memd
            for task in running:
                task.cancel()
    memd.books.close()
    await memd.backend.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memd.sock"


@pytest.fixture
def connect(path: Path) -> Connect:
    @contextmanager
    def connect() -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as client:
            client.connect(str(path))
            yield client

    return connect


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def receive(client: socket.socket) -> bytes:
    """The next datagram; nothing where the server has closed the connection."""
    try:
        return await asyncio.get_running_loop().sock_recv(client, MAX_DATAGRAM_BYTES)
    except ConnectionResetError:
        return b""


async def exchange(client: socket.socket, datagram: bytes) -> MemoryMessage:
    client.send(datagram)
    return decode_memory(await receive(client))


async def ask_for_ever(client: socket.socket) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(client, STATUS)


async def test_every_datagram_is_answered_in_turn(path: Path, connect: Connect) -> None:
    async with serving(path) as memd:
        with connect() as client:
            assert isinstance(await exchange(client, LEASE), LeaseGranted)
            for datagram in (STATUS, LEASE, STATUS):
                client.send(datagram)
            answers = [decode_memory(await receive(client)) for _ in range(3)]
    assert [a.num_leases for a in answers if isinstance(a, MemoryStatusReported)] == [1, 2]
    assert len(memd.books.ledger.leases) == 0


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\x00 no JSON",
        b"{}",
        b'{"type":"request.submitted"}',
        b'{"type":"lease.requested","num_bytes":"lots","holder":"w","purpose":"p"}',
        b'{"type":"lease.ended","lease_id":"lease-1"}',
        b"[" * 50_000,
        b'"' + b"x" * MAX_DATAGRAM_BYTES + b'"',
    ],
    ids=["bytes", "untagged", "bus", "type", "not-for-memd", "deep", "long"],
)
async def test_garbage_closes_its_own_connection_only(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture, garbage: bytes
) -> None:
    async with serving(path) as memd:
        with connect() as good, connect() as bad:
            await exchange(good, LEASE)
            await exchange(bad, LEASE)
            bad.send(garbage)
            assert await receive(bad) == b""
            assert len(memd.books.ledger.leases) == 1
            assert isinstance(await exchange(good, STATUS), MemoryStatusReported)
    assert "connection 2 closed: " in caplog.text


async def test_an_absurd_size_is_denied_and_the_connection_lives(
    path: Path, connect: Connect
) -> None:
    async with serving(path):
        with connect() as client:
            absurd = LEASE.replace(b'"num_bytes":1', b'"num_bytes":1' + b"0" * 4000)
            assert (await exchange(client, absurd)).type == "lease.denied"
            assert isinstance(await exchange(client, STATUS), MemoryStatusReported)


async def test_one_connection_too_many_is_closed_and_a_later_one_served(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path, max_connections=1):
        with connect() as first:
            await exchange(first, STATUS)
            with connect() as second:
                refusal = decode_memory(await receive(second))
                assert isinstance(refusal, MemoryRefused)
                assert "1 are open" in refusal.reason
                assert await receive(second) == b""
            assert "ANOLE_MEMD_MAX_CONNECTIONS" in caplog.text
            first.shutdown(socket.SHUT_WR)
            assert await receive(first) == b""
        with connect() as third:
            assert isinstance(await exchange(third, STATUS), MemoryStatusReported)


async def test_a_client_that_never_reads_loses_its_connection_and_its_leases(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(path) as memd:
        with connect() as deaf, connect() as good:
            await exchange(deaf, LEASE)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await ask_for_ever(deaf)
            while memd.books.ledger.leases:
                await exchange(good, STATUS)
    assert "does not read the answers" in caplog.text


async def test_a_client_that_is_gone_gives_its_leases_back(
    path: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(path) as memd:
        with connect() as good:
            with connect() as gone:
                await exchange(gone, LEASE)
                await exchange(gone, LEASE)
            while len(memd.books.ledger.leases):
                await exchange(good, STATUS)
    assert caplog.text.count("bytes back, given up") == 2


async def test_descriptors_that_a_client_sends_are_not_kept(path: Path, connect: Connect) -> None:
    async with serving(path):
        with connect() as client:
            await exchange(client, STATUS)
            before = num_descriptors()
            socket.send_fds(client, [STATUS], [client.fileno()] * 3)
            decode_memory(await receive(client))
            assert num_descriptors() == before


async def test_another_user_is_told_why_it_is_not_served(path: Path, connect: Connect) -> None:
    async with serving(path, uids=frozenset({os.getuid() + 1})):
        with connect() as client:
            refusal = decode_memory(await receive(client))
            assert isinstance(refusal, MemoryRefused)
            assert f"user {os.getuid()} (process {os.getpid()}) may not" in refusal.reason
            assert "ANOLE_MEMD_ALLOWED_UIDS" in refusal.reason
            assert await receive(client) == b""


async def test_watchers_are_sent_every_change_and_slow_ones_are_cut_off(
    path: Path, connect: Connect
) -> None:
    async with serving(path) as memd:
        with connect() as worker, connect() as keen, connect() as slow:
            await exchange(keen, encode(WatchRequested()))
            await exchange(slow, encode(WatchRequested()))
            lease = await exchange(worker, LEASE)
            assert isinstance(lease, LeaseGranted)
            told = [decode_memory(await receive(keen)) for _ in range(3)]
            assert [one.num_leases for one in told if isinstance(one, MemoryStatusReported)][
                -1
            ] == 1
            for _ in range(2000):
                memd.books.on_change()
                while select_readable(keen):
                    await receive(keen)
            assert isinstance(await exchange(worker, STATUS), MemoryStatusReported)
            while await receive(slow):
                pass


def select_readable(client: socket.socket) -> bool:
    return bool(select.select([client], [], [], 0)[0])


async def test_a_lease_outlives_its_connection_while_its_region_is_mapped(
    path: Path, connect: Connect
) -> None:
    async with serving(path) as memd:
        with connect() as worker:
            worker.setblocking(True)
            worker.send(LEASE)
            _, (descriptor,), _, _ = await asyncio.to_thread(
                socket.recv_fds, worker, MAX_DATAGRAM_BYTES, 1
            )
        with connect() as other:
            while memd.books.ledger.leases[0].state == "held":
                await exchange(other, STATUS)
            assert memd.books.ledger.leases[0].state == "detached"
            os.close(descriptor)
            await memd.lessor.sweep(memd.clock.now())
            assert memd.books.ledger.leases == ()
