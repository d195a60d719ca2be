"""A server as a child process: started, waited for, measured from outside, ended by its id."""

import asyncio
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
import psutil

from bench.load_client import RequestFault

_POLL_S = 0.5
_STOP_S = 20.0


class ServerFault(Exception):
    """A server did not start or has died; the message ends with what it wrote last."""


def free_port() -> int:
    """A TCP port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


class ServerProcess:
    """One server with all its child processes."""

    def __init__(
        self, command: Sequence[object], *, log: Path, environment: Mapping[str, str]
    ) -> None:
        self._command = [str(word) for word in command]
        self._log = log
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, ready_url: str, within_s: float) -> None:
        """Start it and wait until ready_url answers 200."""
        self._process = process = self._spawn()
        until_s = time.monotonic() + within_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
            while not await _answers(session, ready_url):
                if process.poll() is not None:
                    raise ServerFault(f"it ended with status {process.returncode}{self._end}")
                if time.monotonic() > until_s:
                    raise ServerFault(f"it was not ready within {within_s:.0f} s{self._end}")
                await asyncio.sleep(_POLL_S)

    def _spawn(self) -> "subprocess.Popen[bytes]":
        with self._log.open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - the caller's own command
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A Ctrl-C in the terminal is for the benchmark, which then ends its servers.
                start_new_session=True,
            )

    @property
    def _end(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-15:]
        return f"; {self._log} ends with:\n" + "\n".join(f"    {line}" for line in lines)

    def cpu_s(self) -> float:
        """User and system time of all its processes, ended children included."""
        total = 0.0
        for process in self._tree():
            try:
                used = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += used.user + used.system + used.children_user + used.children_system
        return total

    def memory_bytes(self) -> int:
        """Proportional set size: a page that several processes share is split among them."""
        total = 0
        for process in self._tree():
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue
        return total

    async def stop(self) -> None:
        """Ask the server to end; after a while end it and what it left, each by its id."""
        if self._process is None:
            return
        tree = self._tree()
        self._process.terminate()
        _, alive = await asyncio.to_thread(psutil.wait_procs, tree, _STOP_S)
        for process in alive:
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, alive, _STOP_S)
        self._process.wait()
        self._process = None

    def _tree(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def post(url: str, body: Mapping[str, object]) -> None:
    """POST JSON and expect success; raises RequestFault with the server's own words."""
    timeout = aiohttp.ClientTimeout(total=600)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(url, json=body) as answer,
    ):
        if answer.status != 200:
            raise RequestFault(f"{answer.status}: {(await answer.text())[:300]}")
