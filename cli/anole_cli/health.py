"""`anole health SERVICE`: exit status 0 if that service on this host is alive. For containers."""

import argparse
import asyncio
import socket
import sys

from anole_cli.flags import read
from anole_cli.http import get, url_of
from anole_gateway.settings import GatewaySettings
from anole_shared.codec import decode_record
from anole_shared.errors import AnoleError
from anole_shared.keys import Collection
from anole_shared.messages import ServiceRecord
from anole_shared.settings import CommonSettings


def run(arguments: argparse.Namespace) -> int:
    """0 and a word if the service is alive, else 1 and the reason."""
    common = read(CommonSettings, arguments)
    try:
        print(_check(arguments, common))
    except (AnoleError, OSError) as fault:
        print(f"{arguments.service}: {fault}", file=sys.stderr)
        return 1
    return 0


def _check(arguments: argparse.Namespace, common: CommonSettings) -> str:
    match arguments.service:
        case "memd":
            from anole_memd.status import memory_status

            status = memory_status(common.memd_socket, timeout_s=3)
            return (
                f"{status.num_leases} leases, {status.leased_bytes} of {status.total_bytes} bytes"
            )
        case "gateway":
            answer = asyncio.run(get(url_of(read(GatewaySettings, arguments)), "/health"))
            return str(answer.get("status", "ok"))
        case service:
            return asyncio.run(_lease_of(service, common))


async def _lease_of(service: str, common: CommonSettings) -> str:
    """The liveness record that a service of this host keeps in the store."""
    from anole_shared.store_redis import RedisStore

    if common.redis_url is None:
        raise AnoleError("ANOLE_REDIS_URL is unset: an embedded service is as alive as its gateway")
    store = RedisStore(common.redis_url.get_secret_value())
    try:
        records = await store.all(Collection.SERVICES)
    finally:
        await store.close()
    alive = [decode_record(ServiceRecord, body) for body in records.values()]
    host = socket.gethostname()
    found = [one.service_id for one in alive if (one.kind, one.host) == (service, host)]
    if not found:
        raise AnoleError(f"no live {service} of host {host} in the store")
    return found[0]
