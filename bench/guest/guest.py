"""Guest: a running virtual machine, its sockets, and a shell in it."""

import asyncio
import base64
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anole_memd.backends.guest_agent import GuestAgent
from anole_memd.backends.monitor import Monitor, MonitorGone
from anole_memd.backends.qemu import Qemu
from anole_shared.settings import CommonSettings, load
from bench.guest import initramfs
from bench.guest.machine import Machine, command
from bench.guest.packages import GuestUnavailable, Packages, fetch
from bench.section import progress

BOOT_S = 120.0
_COMMAND_S = 120.0
_STOP_S = 10.0
_NICE = 5


@dataclass(frozen=True, slots=True)
class Image:
    """All that a guest boots from."""

    packages: Packages
    initramfs: Path
    accel: str
    """QEMU's word for what runs the guest's instructions: kvm, or its own translator."""


def image(more: initramfs.Files | None = None) -> Image:
    """Fetch, build and try what is not there yet; more: files of the guest's besides.

    Raises:
        GuestUnavailable: it cannot be had here, and why.
    """
    folder = load(CommonSettings).cache_dir / "guest"
    packages = fetch(folder)
    built = initramfs.build(packages, folder, more)
    return Image(packages, built, _accelerator(packages))


def _accelerator(packages: Packages) -> str:
    """Kvm where it runs this kernel: on some hosts /dev/kvm is there and does not."""
    translated = "tcg,thread=multi"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return translated
    told = subprocess.run(  # noqa: S603 - no part of it comes from outside
        [
            *("timeout", "20", *packages.qemu, "-accel", "kvm", "-machine", "q35", "-cpu", "host"),
            *("-m", "512M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-kernel", str(packages.kernel), "-append", "console=ttyS0 panic=-1"),
            *("-serial", "stdio"),
        ],
        env=packages.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    # Without a root file system the kernel gives up, but only once it has come that far.
    return "kvm" if "Unable to mount root" in told.stdout else translated


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in the guest did."""

    status: int
    text: str


class Guest:
    """One virtual machine that runs."""

    def __init__(self, machine: Machine, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.machine = machine
        self.process = process
        self.monitor_socket = folder / "monitor"
        """A QMP socket of its own, for memd."""
        self.agent_socket = folder / "agent"
        """That of a guest agent, for memd too."""
        self.agent = GuestAgent(folder / "shell")
        self.qmp = Monitor(folder / "qmp", "QEMU", greets=True)
        self.qemu = Qemu(self.monitor_socket)
        self._folder = folder
        self._threads: dict[int, int] = {}

    async def booted(self) -> None:
        """Wait for the guest's agent.

        Raises:
            GuestUnavailable: the guest ended, or takes too long; with its last words.
        """
        try:
            async with asyncio.timeout(BOOT_S):
                while not await self._answers():
                    if self.process.poll() is not None:
                        raise GuestUnavailable(f"QEMU ended: {self._last_words()}")
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise GuestUnavailable(
                f"the guest did not boot within {BOOT_S:g} s: {self._last_words()}"
            ) from None

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(2):
                await self.agent.ask("guest-ping")
        except (TimeoutError, MonitorGone):
            await self.agent.close()
            return False
        return True

    async def shell(self, line: str, *, timeout_s: float = _COMMAND_S) -> Answer:
        """Run a line of shell in the guest, and wait for its end."""
        started = await self.agent.ask(
            "guest-exec",
            {"path": "/bin/sh", "arg": ["-c", line], "capture-output": True, "env": ["PATH=/bin"]},
        )
        async with asyncio.timeout(timeout_s):
            status = await self._ended(started)
        text = "".join(
            base64.b64decode(status.get(stream, "")).decode(errors="replace")
            for stream in ("out-data", "err-data")
        )
        return Answer(status.get("exitcode", -1), text)

    async def _ended(self, started: Any) -> Any:  # noqa: ANN401 - JSON
        while True:
            status = await self.agent.ask("guest-exec-status", started)
            if status["exited"]:
                return status
            await asyncio.sleep(0.02)

    async def counters(self) -> dict[str, int]:
        """/proc/vmstat."""
        text = await self.agent.read("/proc/vmstat")
        return {name: int(value) for name, value in map(str.split, text.splitlines())}

    async def cpu_ms(self) -> tuple[int, int]:
        """Milliseconds that the guest's processors were busy: in user mode, and in the kernel."""
        ticks = (await self.agent.read("/proc/stat")).split("\n", 1)[0].split()
        user, nice, system, _idle, _wait, irq, softirq = map(int, ticks[1:8])
        return (user + nice) * 10, (system + irq + softirq) * 10

    async def vcpu_waited_ms(self, number: int) -> float:
        """How long this virtual processor has been ready to run, but did not get one of ours."""
        if not self._threads:
            cpus = await self.qmp.ask("query-cpus-fast")
            self._threads = {cpu["cpu-index"]: cpu["thread-id"] for cpu in cpus}
        task = Path(f"/proc/{self.process.pid}/task/{self._threads[number]}")
        return int((task / "schedstat").read_text().split()[1]) / 1e6

    async def close(self) -> None:
        for one in (self.agent, self.qmp, self.qemu):
            await one.close()

    def stop(self) -> None:
        """End QEMU and remove its files."""
        self.process.terminate()
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        said = [self._folder / name for name in ("output", "console.log")]
        return " ".join(path.read_text(errors="replace")[-1500:] for path in said if path.exists())


@asynccontextmanager
async def running(booted_from: Image, machine: Machine) -> AsyncIterator[Guest]:
    """A guest from its boot to its end.

    Raises:
        GuestUnavailable: it does not boot.
    """
    folder = Path(tempfile.mkdtemp(prefix="anole-guest-"))
    packages = booted_from.packages
    leash = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    line = command(
        machine,
        kernel=packages.kernel,
        initramfs=booted_from.initramfs,
        run=folder,
        accel=booted_from.accel,
    )
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - it only forks
            [*leash, "nice", "-n", str(_NICE), *packages.qemu, *line],
            env=packages.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    guest = Guest(machine, folder, process)
    try:
        progress(f"guest: booting with {machine.devices} devices ({booted_from.accel})")
        await guest.booted()
        yield guest
    finally:
        await guest.close()
        guest.stop()
