"""`anole up`: all four services, in one process or as one process each."""

import argparse
import asyncio
from functools import partial

import orjson

from anole_cli.flags import read
from anole_cli.groups import GROUPS
from anole_cli.http import get, wait_until_ready
from anole_cli.models import model_dir
from anole_cli.services import private_socket, remove_private_socket, serve, supervise
from anole_gateway.settings import GatewaySettings
from anole_shared.errors import ConfigurationError
from anole_shared.settings import CommonSettings, child_environment


def run(arguments: argparse.Namespace) -> int:
    """Run until a signal; the exit status."""
    common = read(CommonSettings, arguments)
    if (common.amqp_url is None) != (common.redis_url is None):
        raise ConfigurationError(
            "only one of ANOLE_AMQP_URL and ANOLE_REDIS_URL is set: set both (one process a "
            "service) or none (all in one process)"
        )
    model = model_dir(common)
    name = common.model_name or model.name
    socket = private_socket()
    try:
        updated = read(CommonSettings, arguments, memd_socket=socket, model=str(model))
        if common.amqp_url is None:
            return _embedded(updated, arguments, name)
        return _supervised(updated, arguments, name)
    finally:
        remove_private_socket(socket)


def _embedded(common: CommonSettings, arguments: argparse.Namespace, name: str) -> int:
    announce = partial(_announce, _url(arguments), name)
    asyncio.run(serve(list(GROUPS), common, arguments, on_ready=announce))
    return 0


def _supervised(common: CommonSettings, arguments: argparse.Namespace, name: str) -> int:
    groups = [read(group, arguments) for group in GROUPS.values()]
    announce = partial(_announce, _url(arguments), name)
    return asyncio.run(supervise(child_environment([common, *groups]), announce=announce))


def _url(arguments: argparse.Namespace) -> str:
    gateway = read(GatewaySettings, arguments)
    host = "127.0.0.1" if gateway.host in {"0.0.0.0", "::"} else gateway.host  # noqa: S104
    return f"http://{host}:{gateway.port}"


async def _announce(url: str, name: str) -> None:
    """As soon as it answers, say where it is and what to type."""
    await wait_until_ready(url)
    models = [model["id"] for model in (await get(url, "/v1/models"))["data"]]
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
