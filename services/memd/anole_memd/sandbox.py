"""Sandboxes: programs whose anonymous memory lies in one leased region each.

A region is the limit: a program that needs more is killed, and never takes memory of its
neighbours. When the program ends its region goes back as a whole. Where memd's regions are NUMA
nodes the program is bound to its node; where they are memfds, which cannot hold a program's
anonymous memory, the lease keeps the room in memd's budget and a control group keeps to it.

Source of the idea: HotMem / Squeezy (EuroSys'26), sections 4.1 and 4.2.
"""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from anole_memd.backends import cgroup, mempolicy
from anole_memd.backends.cgroup import MemoryCgroup
from anole_memd.client import MemdClient
from anole_memd.errors import MemdUnavailable, SandboxUnavailable
from anole_shared.messages import LeaseGranted

log = logging.getLogger(__name__)

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_REMOVE_S, _REMOVE_PAUSE_S = 5.0, 0.02
_FIRST_TO_GO = "1000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program has ended."""

    status: int
    """Its exit status; 128 and the signal's number where a signal ended it."""
    is_out_of_memory: bool
    """Whether it was killed for going over its region."""
    peak_bytes: int
    """The most memory it had; 0 where the kernel does not tell."""


class Running:
    """A program in its region."""

    def __init__(
        self, process: asyncio.subprocess.Process, group: MemoryCgroup, lease: LeaseGranted
    ) -> None:
        self.lease = lease
        self._process = process
        self._group = group

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Pass a signal on to it, if it still runs."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def wait(self) -> Ended:
        """Until it has ended."""
        code = await self._process.wait()
        usage = self._group.usage()
        return Ended(
            status=code if code >= 0 else 128 - code,
            is_out_of_memory=usage.num_killed > 0,
            peak_bytes=usage.peak_bytes,
        )


class Supervisor:
    """Runs programs side by side, each in a region of its own.

    Who finds no region free waits in order of arrival: memd keeps the order, for all supervisors of
    a host together.
    """

    def __init__(
        self,
        socket_path: Path,
        *,
        memory_bytes: int,
        wait_s: float = 30.0,
        cgroups: Path | None = None,
    ) -> None:
        """All its programs have regions of one size.

        Args:
            socket_path: where memd listens.
            memory_bytes: of each region.
            wait_s: a program that has no region by then is not started.
            cgroups: see cgroup.parent().

        Raises:
            SandboxUnavailable: this host cannot confine memory.
        """
        self._socket_path = socket_path
        self._memory_bytes = memory_bytes
        self._wait_s = wait_s
        self._within = cgroup.parent(folder=cgroups)
        cgroup.sweep(self._within)

    @asynccontextmanager
    async def running(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[Running]:
        """Start a program; at the end all of it is gone, and its region is back at memd.

        Raises:
            MemdUnavailable: there is no memd.
            MemdRefused: there was no region within wait_s, or there is none of that size.
            SandboxUnavailable: the program cannot be confined, or not be started.
        """
        memd = await asyncio.to_thread(MemdClient, self._socket_path)
        with memd:
            lease, descriptor = await asyncio.to_thread(self._lease, memd, command[0])
            try:
                async with self._confined(command, environment, lease, descriptor) as running:
                    yield running
            finally:
                if descriptor is not None:
                    os.close(descriptor)
                try:
                    await asyncio.to_thread(memd.release, lease.lease_id)
                except MemdUnavailable as fault:  # a new memd sees that nobody uses the region
                    log.warning("%s is not released by this process: %s", lease.lease_id, fault)

    def _lease(self, memd: MemdClient, name: str) -> tuple[LeaseGranted, int | None]:
        return memd.lease(
            self._memory_bytes,
            label=f"sandbox-{os.getpid()}",
            purpose=Path(name).name,
            wait_s=self._wait_s,
        )

    @asynccontextmanager
    async def _confined(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None,
        lease: LeaseGranted,
        descriptor: int | None,
    ) -> AsyncIterator[Running]:
        group = MemoryCgroup(self._within, cgroup.name_of(lease.lease_id), lease.num_bytes)
        try:
            confine = _confinement(group, lease.node)
            process = await _started(command, environment, confine, descriptor)
            try:
                yield Running(process, group, lease)
            finally:
                group.kill()
                await process.wait()
        finally:
            await _remove(group)


def _confinement(group: MemoryCgroup, node: int | None) -> Callable[[], None]:
    """What a program's process does before it becomes the program."""
    bind = mempolicy.binding(node) if node is not None else None

    def confine() -> None:
        group.join()
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if bind is not None:
            # A node can be full before the group is at its limit. The kernel then kills anybody,
            # the largest first, unless somebody is to go before all others.
            Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
            bind()

    return confine


async def _started(
    command: Sequence[str],
    environment: Mapping[str, str] | None,
    confine: Callable[[], None],
    descriptor: int | None,
) -> asyncio.subprocess.Process:
    """The program and all that it starts inherit a memfd's descriptor.

    So memd sees the region in use for as long as any of them lives, also where this process is
    killed and cannot kill them.
    """
    kept = [] if descriptor is None else [descriptor]
    try:
        return await asyncio.create_subprocess_exec(
            *command, env=environment, preexec_fn=confine, pass_fds=kept
        )
    except (OSError, subprocess.SubprocessError) as fault:
        raise SandboxUnavailable(f"{command[0]} cannot be started: {fault}") from fault


async def _remove(group: MemoryCgroup) -> None:
    """Its processes take a moment to be gone."""
    for _ in range(int(_REMOVE_S / _REMOVE_PAUSE_S)):
        if group.remove():
            return
        await asyncio.sleep(_REMOVE_PAUSE_S)
    log.warning("%s still has processes: it stays", group.path)


async def run(supervisor: Supervisor, command: Sequence[str]) -> Ended:
    """Run one program to its end; this process's signals are passed on to it.

    Raises:
        AnoleError: see Supervisor.running.
    """
    loop = asyncio.get_running_loop()
    passed_on = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    async with supervisor.running(command) as running:
        for number in passed_on:
            loop.add_signal_handler(number, running.send_signal, number)
        try:
            return await running.wait()
        finally:
            for number in passed_on:
                loop.remove_signal_handler(number)
