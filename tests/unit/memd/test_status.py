import socket
import threading
from pathlib import Path

import pytest

from anole_memd.errors import MemdUnavailable
from anole_memd.status import memory_status
from anole_shared.codec import encode
from anole_shared.ids import LeaseId
from anole_shared.messages import LeaseEnded, MemoryStatusReported


def answered_with(path: Path, answer: bytes | None) -> MemoryStatusReported:
    """The status where whoever listens at path says `answer`; None: it says nothing at all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                if answer is None:
                    connection.recv(1000)
                else:
                    connection.send(answer)

        server = threading.Thread(target=serve)
        server.start()
        try:
            return memory_status(path, 5 if answer is not None else 0.05)
        finally:
            server.join()


def test_the_report_is_what_memd_says(tmp_path: Path) -> None:
    report = MemoryStatusReported(total_bytes=100, leased_bytes=40, num_leases=2)
    assert answered_with(tmp_path / "memd.sock", encode(report)) == report


def test_where_nobody_listens_the_socket_and_the_command_are_named(tmp_path: Path) -> None:
    path = tmp_path / "memd.sock"
    with pytest.raises(MemdUnavailable, match=rf"{path} .*`anole memd`"):
        memory_status(path, 1)


@pytest.mark.parametrize(
    "answer", [None, b"", b"no JSON", encode(LeaseEnded(lease_id=LeaseId("")))]
)
def test_anything_but_a_report_is_no_memd(tmp_path: Path, answer: bytes | None) -> None:
    with pytest.raises(MemdUnavailable, match=r"memd\.sock"):
        answered_with(tmp_path / "memd.sock", answer)
