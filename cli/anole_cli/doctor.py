"""`anole doctor`: what is missing or misconfigured on this machine, and how to mend it."""

import argparse
import asyncio
import importlib.metadata
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

from anole_cli.flags import read
from anole_cli.groups import GROUPS
from anole_cli.http import port_fault
from anole_gateway.settings import GatewaySettings
from anole_shared.clock import SystemClock
from anole_shared.errors import AnoleError, ConfigurationError
from anole_shared.settings import CommonSettings, Settings, unknown_variables
from anole_shared.units import GiB, MiB
from anole_worker.model_shape import ModelShape
from anole_worker.settings import DEFAULT_MEMORY_BYTES, WorkerSettings

_ITEMSIZE = 2


class Verdict(Enum):
    """How a check ended; only FAULT keeps Anole from serving."""

    GOOD = "ok"
    NOTE = "note"
    FAULT = "FAULT"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; remedy says what to type or change."""

    verdict: Verdict
    what: str
    remedy: str = ""


Check = Callable[[argparse.Namespace], Iterator[Finding]]


def run(arguments: argparse.Namespace) -> int:
    """Print every finding; 1 if any is a fault."""
    faults = 0
    for check in CHECKS:
        for finding in check(arguments):
            faults += finding.verdict is Verdict.FAULT
            print(f"{finding.verdict.value:>5}  {finding.what}")
            if finding.remedy:
                print(f"       -> {finding.remedy}")
    print(f"\n{faults} faults" if faults else "\nnothing keeps Anole from serving here")
    return 1 if faults else 0


def check_settings(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Every group of settings can be read, and no variable is misspelt."""
    for sentence in unknown_variables([CommonSettings, *GROUPS.values()]):
        yield Finding(Verdict.NOTE, sentence, "unset or correct it")
    groups: list[type[Settings]] = [CommonSettings, *GROUPS.values()]
    for group in groups:
        try:
            read(group, arguments)
        except ConfigurationError as fault:
            yield Finding(Verdict.FAULT, str(fault), "correct these variables or flags")
            raise SystemExit(1) from None
    yield Finding(Verdict.GOOD, "settings are well-formed")


def check_python(_: argparse.Namespace) -> Iterator[Finding]:
    """The interpreter and the packages that each service needs."""
    yield Finding(Verdict.GOOD, f"Python {'.'.join(map(str, sys.version_info[:3]))}")
    for package, extra in (
        ("torch", "worker"),
        ("transformers", "worker"),
        ("safetensors", "worker"),
        ("aiohttp", "gateway"),
    ):
        try:
            yield Finding(Verdict.GOOD, f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            remedy = (
                f"pip install 'anole[{extra}]' (or `make install`), unless no {extra} runs here"
            )
            yield Finding(Verdict.FAULT, f"{package} is not installed", remedy)


def check_machine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Memory, cores and disk are enough for what the settings ask."""
    settings = read(WorkerSettings, arguments)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    wanted = settings.memory_bytes or DEFAULT_MEMORY_BYTES
    what = (
        f"{os.cpu_count()} cores, {total / GiB:.0f} GiB memory; a worker takes "
        f"{wanted / GiB:.1f} GiB for KV cache and adapters beside its model"
    )
    remedy = "lower ANOLE_WORKER_MEMORY_BYTES"
    if wanted > total:
        yield Finding(Verdict.FAULT, what, remedy)
    elif wanted > free:
        yield Finding(Verdict.NOTE, f"{what}, {free / GiB:.1f} GiB are free now", remedy)
    else:
        yield Finding(Verdict.GOOD, what)
    cache = read(CommonSettings, arguments).cache_dir
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    left = shutil.disk_usage(existing).free
    verdict = Verdict.GOOD if left > GiB else Verdict.FAULT
    remedy = "" if left > GiB else "free 1 GiB, or set ANOLE_CACHE_DIR"
    yield Finding(verdict, f"{left / GiB:.0f} GiB disk free at {existing}", remedy)


def check_model(arguments: argparse.Namespace) -> Iterator[Finding]:
    """The base model is here, or can be made."""
    from anole_worker import model_shape

    common = read(CommonSettings, arguments)
    if common.model is None:
        from anole_worker.runtime.smollm2 import default_model_dir

        folder = default_model_dir(common.cache_dir)
        if not folder.exists():
            yield Finding(
                Verdict.NOTE,
                f"the default model is not in {folder} yet",
                "`anole model` makes it (`anole up` does so by itself)",
            )
            return
    else:
        folder = Path(common.model).expanduser()
        if not folder.is_dir():
            remedy = "correct ANOLE_MODEL, unless it is a hub id and there is a network"
            yield Finding(Verdict.NOTE, f"no folder {folder}", remedy)
            return
    try:
        shape = model_shape.read(folder)
    except AnoleError as fault:
        yield Finding(Verdict.FAULT, str(fault), "give another --model")
        return
    what = f"model {folder}: {shape.num_layers} layers, context {shape.max_model_len}"
    yield Finding(Verdict.GOOD, what)
    yield from _check_adapters(read(WorkerSettings, arguments).adapters, shape)


def _check_adapters(folder: Path | None, shape: ModelShape) -> Iterator[Finding]:
    from anole_worker import adapter_files

    if folder is None:
        yield Finding(Verdict.NOTE, "no adapter folder", "give one with --adapters DIR")
        return
    if not folder.is_dir():
        yield Finding(Verdict.FAULT, f"no adapter folder {folder}", "correct --adapters")
        return
    files, refused = adapter_files.discover(folder, shape)
    total = sum(file.packed_bytes(_ITEMSIZE) for file in files)
    yield Finding(
        Verdict.GOOD, f"{len(files)} adapters in {folder}, {total / MiB:.0f} MiB in bfloat16"
    )
    for name, reason in refused:
        yield Finding(Verdict.NOTE, f"adapter {name} is refused: {reason}", "mend or remove it")


def check_bus_and_store(arguments: argparse.Namespace) -> Iterator[Finding]:
    """RabbitMQ and Redis answer, where they are configured."""
    common = read(CommonSettings, arguments)
    if common.amqp_url is None or common.redis_url is None:
        missing = [
            name
            for name, url in (
                ("ANOLE_AMQP_URL", common.amqp_url),
                ("ANOLE_REDIS_URL", common.redis_url),
            )
            if url is None
        ]
        if len(missing) == 1:
            yield Finding(
                Verdict.FAULT,
                f"{missing[0]} is unset while the other one is set",
                "set both (services as processes) or none (all in one process)",
            )
        else:
            yield Finding(Verdict.GOOD, "embedded: all services in one process, no broker needed")
            return
    for name, probe in (("RabbitMQ", _probe_bus), ("Redis", _probe_store)):
        try:
            what = asyncio.run(probe(common))
        except AnoleError as fault:
            yield Finding(Verdict.FAULT, f"{name}: {fault}", "start it, or correct its URL")
        else:
            if what:
                yield Finding(Verdict.GOOD, what)


async def _probe_bus(common: CommonSettings) -> str:
    from anole_shared.bus_amqp import AmqpBus

    if common.amqp_url is None:
        return ""
    url = common.amqp_url.get_secret_value()
    bus = await AmqpBus.connect(url)
    await bus.close()
    return f"RabbitMQ answers at {urlsplit(url).hostname}"


async def _probe_store(common: CommonSettings) -> str:
    from anole_shared.store_redis import RedisStore

    if common.redis_url is None:
        return ""
    url = common.redis_url.get_secret_value()
    store = RedisStore(url)
    try:
        await store.ping()
    finally:
        await store.close()
    return f"Redis answers at {urlsplit(url).hostname or urlsplit(url).path}"


def check_memd(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Memd answers, where workers are processes of their own."""
    from anole_memd.status import memory_status

    common = read(CommonSettings, arguments)
    if common.amqp_url is None:
        return
    clock = SystemClock()
    begin = clock.now()
    try:
        status = memory_status(common.memd_socket, timeout_s=3)
    except AnoleError as fault:
        yield Finding(Verdict.NOTE, str(fault), "workers on this host cannot load adapters without")
        return
    took_ms = (clock.now() - begin) * 1000
    what = f"memd: {status.leased_bytes / MiB:.0f} of {status.total_bytes / MiB:.0f} MiB leased"
    yield Finding(Verdict.GOOD, f"{what} (answered in {took_ms:.1f} ms)")


def check_port(arguments: argparse.Namespace) -> Iterator[Finding]:
    """The gateway's port is free, or a gateway of ours holds it."""
    settings = read(GatewaySettings, arguments)
    fault = port_fault(settings)
    if fault is not None:
        yield Finding(Verdict.NOTE, fault, "fine if Anole runs already; else --port another")
        return
    yield Finding(Verdict.GOOD, f"port {settings.port} is free")


def check_traces(arguments: argparse.Namespace) -> Iterator[Finding]:
    """The trace collector answers, where one is configured."""
    endpoint = read(CommonSettings, arguments).otlp_endpoint
    if endpoint is None:
        yield Finding(Verdict.NOTE, "no traces", "set OTEL_EXPORTER_OTLP_ENDPOINT to see some")
        return
    parts = urlsplit(endpoint)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 4318), timeout=3).close()
    except OSError as fault:
        remedy = "start the collector, or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        yield Finding(Verdict.NOTE, f"no trace collector at {endpoint}: {fault}", remedy)
    else:
        yield Finding(Verdict.GOOD, f"trace collector at {endpoint}")


CHECKS: tuple[Check, ...] = (
    check_settings,
    check_python,
    check_machine,
    check_model,
    check_bus_and_store,
    check_memd,
    check_port,
    check_traces,
)
