"""The client against a memd that does as the test says; the real one is in tests/integration."""

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from anole_shared.codec import decode_memory, encode
from anole_shared.ids import LeaseId
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
from anole_worker.leases import LeaseRefused, MemdUnavailable, RegionClient

SIZE = 2 * 2**20
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
GRANTED = LeaseGranted(lease_id=LeaseId("lease-1"), num_bytes=SIZE)

Script = Callable[[socket.socket, MemoryMessage], object]


def memfd(size: int = SIZE, seals: int = SEALS) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def send_region(connection: socket.socket, descriptor: int, granted: LeaseGranted) -> None:
    socket.send_fds(connection, [encode(granted)], [descriptor])
    os.close(descriptor)


@contextmanager
def memd(path: Path, script: Script) -> Iterator[list[MemoryMessage]]:
    """Listens at path, one connection after the other; yields what it has heard so far."""
    heard: list[MemoryMessage] = []
    connections: list[socket.socket] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            with connection:
                while datagram := connection.recv(100_000):
                    heard.append(decode_memory(datagram))
                    script(connection, heard[-1])

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        try:
            yield heard
        finally:
            for open_socket in [listener, *connections]:
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
            server.join()
            path.unlink()


def grants(**changes: int) -> Script:
    """A script that grants every request with a memfd made from `changes`."""

    def script(connection: socket.socket, message: MemoryMessage) -> None:
        if isinstance(message, LeaseRequested):
            send_region(connection, memfd(**changes), GRANTED)
        elif isinstance(message, LeaseReleased):
            connection.send(encode(LeaseEnded(lease_id=message.lease_id)))

    return script


def says(answer: MemoryMessage) -> Script:
    return lambda connection, _: connection.send(encode(answer))


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memd.sock"


@pytest.fixture
def client(path: Path) -> Iterator[RegionClient]:
    client = RegionClient(path, "worker-1", timeout_s=5)
    yield client
    client.close()


def test_nothing_is_connected_before_the_first_lease(path: Path) -> None:
    RegionClient(path, "worker-1").close()


def test_the_request_says_who_asks_what_for_and_in_which_trace(
    path: Path, client: RegionClient
) -> None:
    with memd(path, grants()) as heard:
        client.lease(100, purpose="french", headers={"traceparent": "t"}).release()
        client.close()
    assert heard == [
        LeaseRequested(
            num_bytes=100, holder="worker-1", purpose="french", headers={"traceparent": "t"}
        ),
        LeaseReleased(lease_id=LeaseId("lease-1")),
    ]


def test_without_memd_the_error_names_the_socket_and_the_command(
    path: Path, client: RegionClient
) -> None:
    with pytest.raises(MemdUnavailable, match=rf"no memd at {path} .*`anole memd`") as fault:
        client.lease(1, purpose="french", headers={})
    assert fault.value.retryable


def test_a_denial_carries_memds_reason_and_the_connection_lives(
    path: Path, client: RegionClient
) -> None:
    with memd(path, says(LeaseDenied(reason="no room for you"))) as heard:
        for _ in range(2):
            with pytest.raises(LeaseRefused, match="no room for you") as refusal:
                client.lease(1, purpose="french", headers={})
            assert refusal.value.retryable
        client.close()
    assert len(heard) == 2


def test_a_memd_that_is_silent_is_given_up(path: Path) -> None:
    client = RegionClient(path, "worker-1", timeout_s=0.05)
    with (
        memd(path, lambda _connection, _message: None),
        pytest.raises(MemdUnavailable, match=r"did not answer lease\.requested .*timed out"),
    ):
        client.lease(1, purpose="french", headers={})


def test_a_memd_that_hangs_up_is_given_up(path: Path, client: RegionClient) -> None:
    def hang_up(connection: socket.socket, _message: MemoryMessage) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    with (
        memd(path, hang_up),
        pytest.raises(MemdUnavailable, match=r"closed the connection.*its log says why"),
    ):
        client.lease(1, purpose="french", headers={})


@pytest.mark.parametrize(
    "answer",
    [
        LeaseEnded(lease_id=LeaseId("lease-1")),
        LeaseGranted(lease_id=LeaseId("lease-1"), num_bytes=SIZE - 1),
    ],
)
def test_an_answer_to_another_question_is_given_up(
    path: Path, client: RegionClient, answer: MemoryMessage
) -> None:
    with memd(path, says(answer)), pytest.raises(MemdUnavailable, match="answered a lease request"):
        client.lease(SIZE, purpose="french", headers={})


def test_an_answer_that_is_no_message_is_given_up_and_its_descriptor_closed(
    path: Path, client: RegionClient
) -> None:
    def garbage(connection: socket.socket, _message: MemoryMessage) -> None:
        descriptor = memfd()
        socket.send_fds(connection, [b"garbage"], [descriptor])
        os.close(descriptor)

    with memd(path, garbage):
        before = num_descriptors()
        with pytest.raises(MemdUnavailable, match="not a message"):
            client.lease(1, purpose="french", headers={})
        client.close()
    assert num_descriptors() == before - 1  # the listener is closed as well


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ({"seals": 0}, "not sealed"),
        ({"seals": fcntl.F_SEAL_GROW}, "not sealed"),
        ({"size": SIZE - 4096}, "smaller than memd says"),
        ({"size": 0}, "smaller than memd says"),
    ],
)
def test_a_region_that_could_kill_with_sigbus_is_not_mapped_but_given_back(
    path: Path, client: RegionClient, made: dict[str, int], fault: str
) -> None:
    with memd(path, grants(**made)) as heard:
        with pytest.raises(LeaseRefused, match=fault):
            client.lease(1, purpose="french", headers={})
        client.close()
    assert heard[1:] == [LeaseReleased(lease_id=LeaseId("lease-1"))]


def test_a_descriptor_of_something_else_is_not_mapped(
    path: Path, client: RegionClient, tmp_path: Path
) -> None:
    plain = tmp_path / "file"
    plain.write_bytes(bytes(SIZE))

    def script(connection: socket.socket, message: MemoryMessage) -> None:
        if isinstance(message, LeaseRequested):
            send_region(connection, os.open(plain, os.O_RDWR), GRANTED)
        else:
            connection.send(encode(LeaseEnded(lease_id=LeaseId("lease-1"))))

    with memd(path, script), pytest.raises(LeaseRefused, match="cannot be mapped"):
        client.lease(1, purpose="french", headers={})


def test_a_grant_without_a_descriptor_is_given_back(path: Path, client: RegionClient) -> None:
    with (
        memd(path, says(GRANTED)),
        pytest.raises(LeaseRefused, match="descriptor did not come through"),
    ):
        client.lease(1, purpose="french", headers={})


def test_a_release_outlives_a_memd_that_does_not_answer_it(
    path: Path, client: RegionClient, caplog: pytest.LogCaptureFixture
) -> None:
    def hang_up_at_release(connection: socket.socket, message: MemoryMessage) -> None:
        if isinstance(message, LeaseRequested):
            send_region(connection, memfd(), GRANTED)
        else:
            connection.shutdown(socket.SHUT_RDWR)

    with memd(path, hang_up_at_release):
        region = client.lease(1, purpose="french", headers={})
        region.release()
    assert "lease-1 is unmapped, memd is not told" in caplog.text


def test_a_release_that_is_answered_with_something_else_drops_the_connection(
    path: Path, client: RegionClient
) -> None:
    with memd(path, lambda connection, _: send_region(connection, memfd(), GRANTED)) as heard:
        client.lease(1, purpose="french", headers={}).release()
        client.lease(1, purpose="french", headers={})
    assert [message.type for message in heard] == [
        "lease.requested",
        "lease.released",
        "lease.requested",
    ]


def test_a_closed_client_leases_no_more_but_its_regions_stay(
    path: Path, client: RegionClient
) -> None:
    with memd(path, grants()) as heard:
        region = client.lease(1, purpose="french", headers={})
        client.close()
        with pytest.raises(MemdUnavailable, match="client is closed"):
            client.lease(1, purpose="french", headers={})
    region.buffer[:5] = b"anole"
    assert bytes(region.buffer[:5]) == b"anole"
    region.release()
    assert len(heard) == 1


def test_close_waits_for_the_call_that_another_thread_is_in(path: Path) -> None:
    asked, closing = threading.Event(), threading.Event()

    def slowly(connection: socket.socket, _message: MemoryMessage) -> None:
        asked.set()
        closing.wait(10)
        send_region(connection, memfd(), GRANTED)

    client = RegionClient(path, "worker-1", timeout_s=10)
    regions = []

    def loader() -> None:
        regions.append(client.lease(1, purpose="french", headers={}))

    with memd(path, slowly):
        leasing = threading.Thread(target=loader)
        leasing.start()
        assert asked.wait(10)
        closer = threading.Thread(target=client.close)
        closer.start()
        closing.set()
        closer.join()
        leasing.join()
    assert regions[0].num_bytes == SIZE
    regions[0].release()


def test_a_check_asks_memd_for_its_status_only(path: Path, client: RegionClient) -> None:
    status = MemoryStatusReported(total_bytes=SIZE, leased_bytes=0, num_leases=0)
    with memd(path, says(status)) as heard:
        client.check()
        client.close()
    assert heard == [MemoryStatusRequested()]


def test_a_check_without_memd_or_with_a_stranger_fails(path: Path, client: RegionClient) -> None:
    with pytest.raises(MemdUnavailable, match="no memd at"):
        client.check()
    with (
        memd(path, says(LeaseEnded(lease_id=LeaseId("lease-1")))),
        pytest.raises(MemdUnavailable, match="it is no memd"),
    ):
        client.check()
