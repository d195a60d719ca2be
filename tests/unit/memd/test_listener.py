import socket
import stat
from pathlib import Path

import pytest

from anole_memd.listener import listening
from anole_shared.errors import ConfigurationError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "memd.sock"


def test_directory_and_socket_are_for_the_user_and_its_group(path: Path) -> None:
    with listening(path, 8):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_dead_memds_socket_file_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    with (
        listening(path, 8),
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
    ):
        client.connect(str(path))


def test_a_living_memds_socket_is_left_alone(path: Path) -> None:
    with listening(path, 8):
        with pytest.raises(ConfigurationError, match="another memd serves"), listening(path, 8):
            pass
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(str(path))


def test_the_path_is_free_again_afterwards(path: Path) -> None:
    for _ in range(2):
        with listening(path, 8):
            assert path.is_socket()


def test_a_file_that_is_no_socket_is_not_deleted(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(ConfigurationError, match="move it away"), listening(path, 8):
        pass
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_unix_socket_is_named(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 30) / "memd.sock"
    with pytest.raises(ConfigurationError, match="longer than the 107 bytes"), listening(path, 8):
        pass


def test_the_longest_path_that_unix_allows_works(tmp_path: Path) -> None:
    room = 107 - len(str(tmp_path)) - 1
    path = tmp_path / ("m" * room)
    with listening(path, 8):
        assert path.is_socket()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "run" / "memd.sock"
    fault = "Not a directory.*ANOLE_MEMD_SOCKET"
    with pytest.raises(ConfigurationError, match=fault), listening(path, 8):
        pass
