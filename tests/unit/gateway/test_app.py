"""The gateway as a service: start, limits, stop."""

import asyncio
from pathlib import Path

import aiohttp
import orjson
import pytest

from anole_gateway.app import GatewayService
from anole_gateway.settings import GatewaySettings
from anole_shared.bus import Headers
from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.errors import BusUnavailable, ConfigurationError
from anole_shared.keys import Collection
from anole_shared.lifecycle import Resources
from anole_shared.messages import FinishReason, Message, RequestAborted
from anole_shared.settings import CommonSettings
from anole_shared.store_memory import MemoryStore
from anole_shared.telemetry import Telemetry
from anole_shared.topology import Queue
from tests.unit.gateway.backend import saying
from tests.unit.gateway.harness import CHAT, TEXT, chat, serving, text


def make_service(
    model_dir: Path, port: int, bus: MemoryBus | None = None, model_name: str | None = None
) -> GatewayService:
    clock = SystemClock()
    resources = Resources(bus=bus or MemoryBus(), store=MemoryStore(clock), clock=clock)
    settings = GatewaySettings(port=port)
    return GatewayService(
        CommonSettings(model_name=model_name), settings, resources, Telemetry("gateway"), model_dir
    )


async def test_a_live_gateway_is_in_the_store_and_a_stopped_one_is_not(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        key = f"gateway:{gateway.service.gateway_id}"
        assert key in await gateway.store.all(Collection.SERVICES)
    assert key not in await gateway.store.all(Collection.SERVICES)


async def test_a_port_in_use_stops_the_start_and_says_so(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        second = make_service(model_dir, gateway.service.port)
        with pytest.raises(ConfigurationError, match=r"cannot listen on.*ANOLE_GATEWAY_PORT"):
            await second.run(ready=asyncio.Event(), stop=asyncio.Event())


async def test_a_model_folder_that_is_none_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"config\.json"):
        await make_service(tmp_path, 0).run(ready=asyncio.Event(), stop=asyncio.Event())


async def test_unnamed_models_bear_their_folders_name(model_dir: Path) -> None:
    service = make_service(model_dir, 0)
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.run(ready=ready, stop=stop))
        await ready.wait()
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{service.port}/v1/models"
            async with session.get(url) as answer:
                models = await answer.json()
        stop.set()
    assert [model["id"] for model in models["data"]] == ["folder-name"]


async def test_a_bus_that_is_closed_under_it_ends_the_service(model_dir: Path) -> None:
    bus = MemoryBus()
    service = make_service(model_dir, 0, bus)
    ready = asyncio.Event()

    async def close() -> None:
        await ready.wait()
        await bus.close()

    async def serve_and_close() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(service.run(ready=ready, stop=asyncio.Event()))
            tasks.create_task(close())

    with pytest.raises(ExceptionGroup) as failed:
        await serve_and_close()
    assert failed.group_contains(BusUnavailable)


async def test_more_completions_than_allowed_are_429(model_dir: Path) -> None:
    async with serving(model_dir, max_concurrent_requests=1, retry_after_s=5) as gateway:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(gateway.post(CHAT, chat()))
            order = await gateway.backend.next_order()
            refused = await gateway.post(TEXT, text())
            assert (await gateway.get("/v1/models")).status == 200
            await gateway.backend.send(order, [40], FinishReason.STOP)
        async with asyncio.TaskGroup() as tasks:
            later = tasks.create_task(gateway.post(TEXT, text()))
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40], FinishReason.STOP)
    assert refused.status == 429
    assert refused.error["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "5"
    assert (first.result().status, later.result().status) == (200, 200)


async def test_a_stop_lets_streams_finish_and_takes_nothing_new(model_dir: Path) -> None:
    async with serving(model_dir, keep_alive_s=0.01) as gateway:
        body = orjson.dumps(chat(stream=True))
        async with gateway.session.post(gateway.url + CHAT, data=body) as response:
            order = await gateway.backend.next_order()
            gateway.stop.set()
            refused = await gateway.post(TEXT, text())
            ready = await gateway.get("/ready")
            await gateway.backend.send(order, [40], FinishReason.STOP)
            rest = await response.read()
    assert refused.status == 503
    assert "stopping" in refused.error["message"]
    assert "retry-after" in refused.headers
    assert "stopping" in ready.json["missing"]
    assert rest.endswith(b"data: [DONE]\n\n")
    assert gateway.backend.aborted == []


async def test_the_process_for_constraints_ends_with_the_gateway(plain_model_dir: Path) -> None:
    async with serving(plain_model_dir, saying([40])) as gateway:
        answer = await gateway.post(CHAT, chat(guided_choice=["a"]))
        process = gateway.service._grammars._process
    assert answer.status == 200
    assert process is not None
    assert process.returncode is not None


class SlowBus(MemoryBus):
    """Takes its time over aborts, as a broker does."""

    async def publish(self, queue: Queue, message: Message, headers: Headers) -> None:
        if isinstance(message, RequestAborted):
            await asyncio.sleep(0.02)
        await super().publish(queue, message, headers)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_does_not_finish_in_time_is_told_and_aborted(
    model_dir: Path, *, stream: bool
) -> None:
    async with serving(model_dir, bus=SlowBus(), drain_s=0, keep_alive_s=0.01) as gateway:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(gateway.post(CHAT, chat(stream=stream)))
            order = await gateway.backend.next_order()
            await gateway.backend.send(order, [40])
            gateway.stop.set()
        answer = asking.result()
        abort = await gateway.backend.next_abort()
    assert abort.request_id == order.request_id
    assert len(gateway.backend.aborted) == 1
    if stream:
        assert "[DONE]" not in answer.events
        assert "gateway is stopping" in answer.events[-1]
    else:
        assert answer.status == 503
        assert "gateway is stopping" in answer.error["message"]
