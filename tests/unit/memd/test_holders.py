import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anole_memd.backends import processes
from anole_memd.core.lease import Holder
from anole_memd.holders import HolderWatch
from anole_memd.peers import peer_of


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def holder_of(pid: int) -> Holder:
    started = processes.start_ticks(pid)
    assert started is not None
    return Holder(pid=pid, started=started)


async def test_the_end_of_a_process_is_heard_of_once(child: subprocess.Popen[bytes]) -> None:
    ended: asyncio.Queue[Holder] = asyncio.Queue()
    watch, holder = HolderWatch(ended.put_nowait), holder_of(child.pid)
    assert watch.add(holder)
    assert watch.add(holder)
    child.send_signal(signal.SIGKILL)
    assert await ended.get() == holder
    assert ended.empty()
    child.wait()
    assert not watch.add(holder)


async def test_a_removed_holder_is_not_heard_of(child: subprocess.Popen[bytes]) -> None:
    ended: list[Holder] = []
    watch = HolderWatch(ended.append)
    before = num_descriptors()
    watch.add(holder_of(child.pid))
    watch.close()
    assert num_descriptors() == before
    child.kill()
    child.wait()
    await asyncio.sleep(0)
    assert ended == []


async def test_another_process_of_the_same_id_is_not_watched(
    child: subprocess.Popen[bytes],
) -> None:
    watch = HolderWatch(lambda _: None)
    assert not watch.add(Holder(pid=child.pid, started=holder_of(child.pid).started + 1))
    assert not watch.add(Holder(pid=0, started=7))


def test_a_peer_is_the_process_that_connected() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        peer = peer_of(ours, number=7)
    assert peer.holder == holder_of(os.getpid())
    assert peer.uid == os.getuid()


def test_a_peer_that_cannot_be_seen_is_known_by_its_connection(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert peer_of(ours, number=7, proc=tmp_path).holder == Holder(pid=0, started=7)


def test_start_times_tell_processes_apart(child: subprocess.Popen[bytes]) -> None:
    holder = holder_of(child.pid)
    assert processes.is_alive(holder.pid, holder.started)
    assert not processes.is_alive(holder.pid, holder.started + 1)
    assert processes.is_alive(0, 7)
    child.kill()
    child.wait()
    assert processes.start_ticks(child.pid) is None


async def test_a_holder_that_cannot_be_watched_for_want_of_descriptors_is_no_fault(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.EMFILE, f"too many open files for {pid}")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    ended: list[Holder] = []
    assert not HolderWatch(ended.append).add(holder_of(child.pid))
    assert ended == []
