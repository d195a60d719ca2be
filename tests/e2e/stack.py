"""Anole as its users run it: child processes of the test, embedded or one process a service."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.servers import free_port

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
STYLES = ("bullets", "json", "pirate", "shout")
BASE = "smollm2-135m-instruct"
START_S = 120


def make_adapter_folder(target: Path) -> Path:
    """The example adapters, one more that only one test uses, and two that are broken."""
    shutil.copytree(EXAMPLES, target)
    shutil.copytree(target / "pirate", target / "fresh")
    shutil.copytree(target / "pirate", target / "swapped")
    shutil.copytree(target / "shout", target / "cut-off")
    weights = target / "cut-off" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    shutil.copytree(target / "json", target / "no-weights")
    (target / "no-weights" / "adapter_model.safetensors").unlink()
    return target


def is_ready(url: str) -> bool:
    """What /ready of the gateway there says."""
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Stack:
    """Processes of `anole`, each with its own log, behind one gateway."""

    def __init__(
        self, folder: Path, commands: Sequence[Sequence[str]], variables: Mapping[str, str]
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.is_exact = variables.get("ANOLE_WORKER_DTYPE") == "float32"
        self._commands = commands
        self._environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("ANOLE_")},
            "ANOLE_GATEWAY_PORT": str(self.port),
            "ANOLE_WORKER_ADAPTERS": str(folder / "adapters"),
            "ANOLE_MEMD_SOCKET": str(folder / "memd.sock"),
            "ANOLE_WORKER_MEMORY_BYTES": str(512 * 2**20),
            **variables,
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all and wait until the gateway is ready."""
        for command in self._commands:
            self.spawn(command)
        deadline = time.monotonic() + START_S
        while not self.is_ready():
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} has ended:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"not ready in {START_S} s:\n{self.logs()}"
            time.sleep(0.2)

    def spawn(self, command: Sequence[str], name: str | None = None, **variables: str) -> None:
        """Start one more process of anole, with some variables that the others do not have."""
        name = name or command[0]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "anole_cli", *command],
                env=self._environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def is_ready(self) -> bool:
        """What /ready says."""
        return is_ready(self.url)

    def until_listed(self, model: str) -> None:
        """Wait until /v1/models names the model."""
        deadline = time.monotonic() + START_S
        while True:
            with urllib.request.urlopen(f"{self.url}/v1/models", timeout=5) as answer:
                if any(found["id"] == model for found in json.load(answer)["data"]):
                    return
            assert time.monotonic() < deadline, f"{model} is not listed:\n{self.logs()}"
            time.sleep(0.2)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            page: bytes = answer.read()
        return page.decode()

    def metric(self, name: str) -> float:
        """What /metrics says under the name, all labels together."""
        line = re.compile(rf"^{name}(?:{{.*}})? (.+)$", re.MULTILINE)
        return sum(map(float, line.findall(self._metrics())))

    def running_sequences(self) -> dict[str, int]:
        """What /metrics says of each worker."""
        line = re.compile(r'^anole_worker_running_requests{worker="(.+)"} (.+)$', re.MULTILINE)
        found = line.findall(self._metrics())
        return {worker: int(float(count)) for worker, count in found}

    def kill(self, name: str) -> None:
        """End one process without a chance to say goodbye."""
        process = self.processes.pop(name)
        process.kill()
        process.wait(20)

    def stop(self) -> dict[str, int]:
        """Stop all, the last started first; the exit status of each."""
        statuses = {}
        for name, process in reversed(list(self.processes.items())):
            process.send_signal(signal.SIGTERM)
            try:
                statuses[name] = process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[name] = process.wait(10)
        return statuses

    def log(self, name: str) -> str:
        """What the process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def logs(self) -> str:
        """What all have said so far."""
        return "\n".join(f"--- {name}\n{self.log(name)}" for name in self.processes)


@contextmanager
def running(
    folder: Path, commands: Sequence[Sequence[str]], variables: Mapping[str, str]
) -> Iterator[Stack]:
    """A stack over the example adapters; in the end each of its processes must end well."""
    make_adapter_folder(folder / "adapters")
    stack = Stack(folder, commands, variables)
    try:
        stack.start()
        yield stack
    finally:
        statuses = stack.stop()
    assert set(statuses.values()) == {0}, stack.logs()
