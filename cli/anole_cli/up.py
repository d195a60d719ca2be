"""`anole up`: all four services, in one process or as one process each."""

import argparse
import asyncio
import logging
from functools import partial

import orjson

from anole_cli.flags import read
from anole_cli.groups import GROUPS
from anole_cli.http import get, port_fault, url_of, wait_until_ready
from anole_cli.models import resolved
from anole_cli.services import private_socket, remove_private_socket, serve, supervise
from anole_gateway.settings import GatewaySettings
from anole_shared.errors import AnoleError, ConfigurationError
from anole_shared.settings import CommonSettings, child_environment
from anole_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_STOP_S = 10.0
"""What a service may take to stop, beside draining."""


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal; the exit status."""
    common = read(CommonSettings, arguments)
    if (common.amqp_url is None) != (common.redis_url is None):
        raise ConfigurationError(
            "only one of ANOLE_AMQP_URL and ANOLE_REDIS_URL is set: set both (one process a "
            "service) or none (all in one process)"
        )
    gateway = read(GatewaySettings, arguments)
    if gateway.port == 0:
        raise ConfigurationError("`anole up` tells where it listens: give --port a number")
    fault = port_fault(gateway)
    if fault is not None:
        raise ConfigurationError(f"{fault}; give another --port, or stop what listens there")
    common = resolved(common)
    socket = private_socket()
    if "memd_socket" not in common.model_fields_set:
        common = common.model_copy(update={"memd_socket": socket})
    announce = partial(_announce, url_of(gateway), common.model_name or "")
    try:
        if common.amqp_url is None:
            asyncio.run(serve(list(GROUPS), common, arguments, on_ready=announce))
            return 0
        variables = child_environment([common, *(read(g, arguments) for g in GROUPS.values())])
        worker = read(WorkerSettings, arguments)
        stop_within_s = max(gateway.drain_s, worker.drain_s) + _STOP_S
        return asyncio.run(supervise(variables, announce=announce, stop_within_s=stop_within_s))
    finally:
        remove_private_socket(socket)


async def _announce(url: str, name: str) -> None:
    """As soon as it answers, say where it is and what to type."""
    await wait_until_ready(url)
    try:
        models = [model["id"] for model in (await get(url, "/v1/models"))["data"]]
    except AnoleError as fault:
        log.warning("Anole listens at %s, but: %s", url, fault)
        return
    adapters = [model for model in models if model != name]
    lines = [f"\nAnole is ready at {url}", f"models: {', '.join(models)}\n"]
    for model in (name, adapters[-1] if adapters else name):
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
            "max_tokens": 64,
        }
        lines.append(f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' \\")
        lines.append(f"  -d '{orjson.dumps(body).decode()}'\n")
    print("\n".join(lines), flush=True)
