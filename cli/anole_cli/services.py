"""Builds the services and runs them: one of them, or all in one process, or one process each."""

import argparse
import asyncio
import ctypes
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from anole_cli.flags import read
from anole_cli.groups import GROUPS
from anole_gateway.settings import GatewaySettings
from anole_memd.settings import MemdSettings
from anole_scheduler.settings import SchedulerSettings
from anole_shared.lifecycle import Resources, Service, resources, run_services, stop_on_signals
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

Builder = Callable[[CommonSettings, argparse.Namespace, Resources, Telemetry], Service]


def _memd(
    common: CommonSettings, arguments: argparse.Namespace, _: Resources, telemetry: Telemetry
) -> Service:
    from anole_memd.app import MemdService

    return MemdService(common, read(MemdSettings, arguments), telemetry)


def _worker(
    common: CommonSettings, arguments: argparse.Namespace, given: Resources, telemetry: Telemetry
) -> Service:
    from anole_worker.app import WorkerService

    settings = read(WorkerSettings, arguments)
    return WorkerService(common, settings, given, telemetry, Path(common.model or ""))


def _scheduler(
    common: CommonSettings, arguments: argparse.Namespace, given: Resources, telemetry: Telemetry
) -> Service:
    from anole_scheduler.app import SchedulerService

    return SchedulerService(common, read(SchedulerSettings, arguments), given, telemetry)


def _gateway(
    common: CommonSettings, arguments: argparse.Namespace, given: Resources, telemetry: Telemetry
) -> Service:
    from anole_gateway.app import GatewayService

    settings = read(GatewaySettings, arguments)
    return GatewayService(common, settings, given, telemetry, Path(common.model or ""))


Process = asyncio.subprocess.Process

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

Announce = Callable[[], Coroutine[None, None, None]]

BUILDERS: dict[str, Builder] = {
    "memd": _memd,
    "worker": _worker,
    "scheduler": _scheduler,
    "gateway": _gateway,
}


async def serve(
    kinds: Sequence[str],
    common: CommonSettings,
    arguments: argparse.Namespace,
    *,
    on_ready: Announce,
) -> None:
    """Run the services of these kinds in this process until SIGINT or SIGTERM."""
    stop, ready = asyncio.Event(), asyncio.Event()
    stop_on_signals(stop)
    telemetries = {kind: Telemetry(kind, endpoint=common.otlp_endpoint) for kind in kinds}
    try:
        async with resources(common) as given:
            services = [
                BUILDERS[kind](common, arguments, given, telemetries[kind]) for kind in kinds
            ]
            async with asyncio.TaskGroup() as tasks:
                announcing = tasks.create_task(_announce(ready, on_ready), name="announce")
                await run_services(services, ready=ready, stop=stop)
                announcing.cancel()
    finally:
        for telemetry in telemetries.values():
            await asyncio.to_thread(telemetry.shutdown)


async def _announce(ready: asyncio.Event, on_ready: Announce) -> None:
    await ready.wait()
    await on_ready()


def private_socket() -> Path:
    """A socket path in a fresh folder that only this user can enter.

    In memory where there is such a place: memd's journal lies beside its socket, and no lease shall
    wait for a disk where it need not outlive this process.
    """
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="anole-", dir=folder)) / "memd.sock"


def remove_private_socket(path: Path) -> None:
    """Remove the folder that private_socket() made."""
    shutil.rmtree(path.parent, ignore_errors=True)


async def supervise(variables: dict[str, str], *, announce: Announce, stop_within_s: float) -> int:
    """Run one process a service until a signal, or until one of them ends; the exit status.

    variables: the whole environment of the children. They end with this process, however it ends.
    """
    stop = asyncio.Event()
    stop_on_signals(stop)
    children: dict[str, Process] = {}
    try:
        for kind in GROUPS:
            children[kind] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "anole_cli",
                kind,
                env=variables,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        async with asyncio.TaskGroup() as tasks:
            ends = [tasks.create_task(child.wait()) for child in children.values()]
            stopping = tasks.create_task(stop.wait())
            announcing = tasks.create_task(announce())
            await asyncio.wait([*ends, stopping], return_when=asyncio.FIRST_COMPLETED)
            announcing.cancel()
            stopping.cancel()
            await _end(children, stop_within_s)
    finally:
        for child in children.values():
            if child.returncode is None:
                child.kill()
    return 0 if stop.is_set() else 1


async def _end(children: dict[str, Process], within_s: float) -> None:
    """End the children, the one that leans on the others first; kill what takes too long."""
    for kind, child in children.items():
        if child.returncode is not None:
            log.error("%s has ended with status %d: stopping the rest", kind, child.returncode)
    for kind, child in reversed(children.items()):
        if child.returncode is not None:
            continue
        child.terminate()
        try:
            async with asyncio.timeout(within_s):
                await child.wait()
        except TimeoutError:
            log.warning("%s did not stop in time: killed", kind)
            child.kill()


def _end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent is gone (prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
