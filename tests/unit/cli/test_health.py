"""`anole health` against a real store."""

import asyncio
import socket

import pytest

from anole_cli.main import main
from anole_shared.codec import encode
from anole_shared.keys import Collection
from anole_shared.messages import ServiceRecord
from anole_shared.store_redis import RedisStore

pytestmark = pytest.mark.integration


async def tell(url: str, host: str) -> None:
    """Write the record that a scheduler on that host keeps."""
    store = RedisStore(url)
    record = ServiceRecord(kind="scheduler", service_id="mine", host=host, started_s=0)
    await store.put(Collection.SERVICES, "scheduler:mine", encode(record))
    await store.close()


@pytest.mark.parametrize(("is_own", "status"), [(True, 0), (False, 1)])
async def test_a_service_is_alive_while_its_own_hosts_record_stands(
    fresh_redis_url: str, monkeypatch: pytest.MonkeyPatch, *, is_own: bool, status: int
) -> None:
    host = socket.gethostname()
    await tell(fresh_redis_url, host if is_own else f"{host}-2")
    monkeypatch.setenv("ANOLE_REDIS_URL", fresh_redis_url)
    assert await asyncio.to_thread(main, ["health", "scheduler"]) == status
