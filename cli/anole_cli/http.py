"""The command line's own calls to a running gateway.

aiohttp comes with the gateway's extra and is imported late: the other services do without it.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import orjson

from anole_gateway.settings import GatewaySettings
from anole_shared.errors import AnoleError


class GatewayCallFailed(AnoleError):
    """The gateway did not answer, or answered with an error."""


def url_of(settings: GatewaySettings) -> str:
    """Where a gateway with these settings is reached from its own host."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def port_fault(settings: GatewaySettings) -> str | None:
    """Why a gateway with these settings cannot listen, if so."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        socket.create_server((settings.host, settings.port), family=family).close()
    except OSError as fault:
        return f"the gateway cannot listen on {settings.host}:{settings.port}: {fault.strerror}"
    return None


async def wait_until_ready(url: str) -> None:
    """Ask /ready until it says yes."""
    import aiohttp

    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(f"{url}/ready") as answer:
                    if answer.ok:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.3)


async def get(url: str, path: str) -> dict[str, Any]:
    """The JSON that the gateway answers to GET path.

    Raises:
        GatewayCallFailed: with what to do about it.
    """
    import aiohttp

    try:
        async with aiohttp.ClientSession() as session, session.get(f"{url}{path}") as answer:
            return _checked(answer.status, await answer.read())
    except aiohttp.ClientError as fault:
        raise _unreachable(url) from fault


async def stream_chat(
    url: str, model: str, messages: list[dict[str, str]], options: dict[str, Any]
) -> AsyncIterator[str]:
    """The pieces of one chat answer as they come.

    Raises:
        GatewayCallFailed: with the gateway's own message.
    """
    import aiohttp

    body = {"model": model, "messages": messages, "stream": True, **options}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(f"{url}/v1/chat/completions", json=body) as answer,
        ):
            if not answer.ok:
                _checked(answer.status, await answer.read())
            async for line in answer.content:
                piece = _piece_of(line)
                if piece:
                    yield piece
    except aiohttp.ClientError as fault:
        raise _unreachable(url) from fault


def _piece_of(line: bytes) -> str:
    """The text in one line of server-sent events."""
    data = line.removeprefix(b"data: ").strip()
    if not line.startswith(b"data: ") or data == b"[DONE]":
        return ""
    event = orjson.loads(data)
    if "error" in event:
        raise GatewayCallFailed(event["error"]["message"])
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _checked(status: int, body: bytes) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = orjson.loads(body)
    except orjson.JSONDecodeError:
        answer = {"error": {"message": body[:200].decode(errors="replace")}}
    if "error" in answer:
        raise GatewayCallFailed(f"{status}: {answer['error']['message']}")
    return answer


def _unreachable(url: str) -> GatewayCallFailed:
    return GatewayCallFailed(
        f"no gateway answers at {url}: start one with `make serve`, or name another with --url"
    )
