"""Private RabbitMQ and Redis for the tests: child processes on free ports, gone without a trace.

Nothing here touches a server that already runs on the machine. Where the programs are missing they
are installed with apt-get (as root, and saying so), or the error names the packages to install;
`python -m tests.servers install` does that alone, and fetches the guest's packages.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from anole_shared.errors import AnoleError
from anole_shared.settings import CommonSettings, load
from bench.guest.packages import GuestUnavailable, fetch

RABBITMQ_BIN = Path("/usr/lib/rabbitmq/bin")
"""Not /usr/sbin: Debian's wrapper there changes user and directory and drops the environment."""

PACKAGES = {
    "rabbitmq-server": RABBITMQ_BIN / "rabbitmq-server",
    "redis-server": None,
    "gcc": None,
    "libc6-dev": Path("/usr/include/stdio.h"),
}
SERVERS = ("rabbitmq-server", "redis-server")
COMPILER = ("gcc", "libc6-dev")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0


def install_missing(packages: Iterable[str] = SERVERS) -> None:
    """See that the servers' programs are there, installing them where that is possible.

    Raises:
        RuntimeError: they are missing and cannot be installed; says what to do.
    """
    missing = [package for package in packages if not _is_there(package)]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(
            f"the tests need {' and '.join(missing)}; install them: sudo {' '.join(command)}"
        )
    print(f"tests: {' and '.join(missing)} missing; running {' '.join(command)}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        done = subprocess.run(step, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(step)} failed:\n{done.stdout}{done.stderr}")


def _is_there(package: str) -> bool:
    path = PACKAGES[package]
    return path.exists() if path else shutil.which(package) is not None


def fetch_guest() -> None:
    """Have QEMU and a kernel for the tests of memory hotplug; these are not installed.

    Raises:
        GuestUnavailable: they cannot be had here.
    """
    try:
        install_missing(COMPILER)
    except RuntimeError as fault:
        raise GuestUnavailable(str(fault)) from fault
    fetch(load(CommonSettings).cache_dir / "guest")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class RabbitMQ:
    """One broker with its own node name, cookie, data, epmd and ports. It can be restarted."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
        self._epmd_port = free_port()
        self._dist_port = free_port()
        self._dir = Path(tempfile.mkdtemp(prefix="anole-rabbitmq-"))
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Return when the broker takes connections."""
        install_missing(["rabbitmq-server"])
        environment = self._configure()
        # An epmd of our own in the foreground: else Erlang starts a daemon that outlives the node.
        epmd = ["epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"]
        log = self._dir / "output"
        self._children.append(_spawn(epmd, environment, self._dir, log))
        server = _spawn([str(RABBITMQ_BIN / "rabbitmq-server")], environment, self._dir, log)
        self._children.append(server)
        _wait_until(self._answers, server, log)

    def stop(self) -> None:
        """Stop the broker; what is durable stays for the next start."""
        while self._children:
            _terminate(self._children.pop())

    def remove(self) -> None:
        """Stop for good and delete all data."""
        self.stop()
        shutil.rmtree(self._dir, ignore_errors=True)

    def _configure(self) -> dict[str, str]:
        home = self._dir
        (home / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            "log.console = false\n"
            "vm_memory_high_watermark.absolute = 1GB\n"
            "disk_free_limit.absolute = 50MB\n"
        )
        (home / "enabled_plugins").write_text("[].\n")
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(home),  # holds the Erlang cookie
            "RABBITMQ_NODENAME": f"anole{self.port}@localhost",
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2",
            # Makes the start script exec Erlang, so that the child's pid is the broker's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _answers(self) -> bool:
        return _first_answer(self.port, b"AMQP\x00\x00\x09\x01") != b""


class Redis:
    """One Redis that keeps nothing on disk. It can be restarted, empty."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._dir = Path(tempfile.mkdtemp(prefix="anole-redis-"))
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers."""
        install_missing(["redis-server"])
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._dir),
            "save": "",
            "appendonly": "no",
            "daemonize": "no",
        }
        command = ["redis-server"]
        for option, value in options.items():
            command += [f"--{option}", value]
        log = self._dir / "output"
        self._child = _spawn(command, {"PATH": os.environ["PATH"]}, self._dir, log)
        _wait_until(lambda: _first_answer(self.port, b"PING\r\n") == b"+", self._child, log)

    def stop(self) -> None:
        """Stop it; all records are gone."""
        if self._child is not None:
            _terminate(self._child)
            self._child = None

    def remove(self) -> None:
        """Stop for good and delete its folder."""
        self.stop()
        shutil.rmtree(self._dir, ignore_errors=True)


ServerT = TypeVar("ServerT", RabbitMQ, Redis)


@contextmanager
def serving(kind: type[ServerT]) -> Iterator[ServerT]:
    """A server of that kind for as long as it is needed."""
    server = kind()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _spawn(
    command: list[str], environment: dict[str, str], folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    # Even where the tests are killed, the server goes with them.
    leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with log.open("ab") as output:
        return subprocess.Popen(
            leash + command,
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _first_answer(port: int, question: bytes) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(5)
            connection.sendall(question)
            return connection.recv(1)
    except OSError:
        return b""


def _wait_until(ready: Callable[[], bool], server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if server.poll() is not None or time.monotonic() > deadline:
            output = log.read_text(errors="replace")[-2000:]
            _terminate(server)
            raise RuntimeError(
                f"{server.args!r} did not start (exit {server.returncode}):\n{output}"
            )
        time.sleep(0.05)


def _terminate(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


if __name__ == "__main__":
    if sys.argv[1:] != ["install"]:
        sys.exit("usage: python -m tests.servers install")
    try:
        install_missing()
    except RuntimeError as fault:
        sys.exit(str(fault))
    try:
        fetch_guest()
    except AnoleError as fault:
        print(f"tests: those of a guest will be skipped: {fault}", file=sys.stderr)
