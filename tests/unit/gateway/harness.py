"""A whole gateway on loopback, over the in-process bus and store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from anole_gateway.app import GatewayService
from anole_gateway.settings import GatewaySettings
from anole_shared.bus import Bus
from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.codec import encode
from anole_shared.ids import AdapterId
from anole_shared.keys import Collection
from anole_shared.lifecycle import Resources
from anole_shared.messages import AdapterRecord
from anole_shared.settings import CommonSettings
from anole_shared.store import Store
from anole_shared.store_memory import MemoryStore
from anole_shared.telemetry import Telemetry
from tests.unit.gateway.backend import Backend, Script

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


def chat(**fields: Any) -> dict[str, Any]:
    """A valid chat request, with fields replaced or added."""
    return {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]} | fields


def text(**fields: Any) -> dict[str, Any]:
    """A valid text request, with fields replaced or added."""
    return {"model": "tiny", "prompt": "hello"} | fields


def adapter(adapter_id: str, **fields: Any) -> AdapterRecord:
    given: dict[str, Any] = {
        "adapter_id": AdapterId(adapter_id),
        "rank": 8,
        "target_modules": ("q_proj", "v_proj"),
        "size_bytes": 1024,
        "generation": "abc",
    }
    return AdapterRecord(**(given | fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    @property
    def events(self) -> list[str]:
        """What stands behind "data: ", in order."""
        lines = self.body.decode().split("\n\n")
        assert lines[-1] == ""
        return [line.removeprefix("data: ") for line in lines[:-1] if not line.startswith(":")]

    @property
    def chunks(self) -> list[Any]:
        return [orjson.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def streamed_text(self) -> str:
        choices = [chunk["choices"][0] for chunk in self.chunks if chunk.get("choices")]
        return "".join(
            choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices
        )


@dataclass(slots=True, kw_only=True)
class Gateway:
    """A running gateway and everything around it."""

    service: GatewayService
    backend: Backend
    bus: Bus
    store: Store
    session: aiohttp.ClientSession
    stop: asyncio.Event
    exporter: InMemorySpanExporter

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.service.port}"

    async def request(self, method: str, path: str, **given: Any) -> Answer:
        async with self.session.request(method, self.url + path, **given) as response:
            body = await response.read()
            headers = {key.lower(): value for key, value in response.headers.items()}
            return Answer(status=response.status, headers=headers, body=body)

    async def get(self, path: str) -> Answer:
        return await self.request("GET", path)

    async def post(self, path: str, body: object, **given: Any) -> Answer:
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} | given.pop("headers", {})
        return await self.request("POST", path, data=data, headers=headers, **given)

    async def add_adapter(self, record: AdapterRecord) -> None:
        await self.store.put(Collection.ADAPTERS, record.adapter_id, encode(record))

    async def span(self, name: str) -> ReadableSpan:
        """The span of that name, which may end a moment after its answer was read."""
        while True:
            for span in self.exporter.get_finished_spans():
                if span.name == name:
                    return span
            await asyncio.sleep(0.01)


@asynccontextmanager
async def serving(
    model_dir: Path,
    script: Script | None = None,
    *,
    bus: Bus | None = None,
    store: Store | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Run a gateway, and stop it in the end."""
    clock = SystemClock()
    bus = bus or MemoryBus()
    store = store or MemoryStore(clock)
    exporter = InMemorySpanExporter()
    telemetry = Telemetry("gateway", exporter=exporter)
    service = GatewayService(
        CommonSettings(model_name="tiny"),
        GatewaySettings(**({"port": 0} | settings)),
        Resources(bus=bus, store=store, clock=clock),
        telemetry,
        model_dir,
    )
    backend = Backend(bus, script)
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        playing = tasks.create_task(backend.run())
        running = tasks.create_task(service.run(ready=ready, stop=stop))
        await ready.wait()
        async with aiohttp.ClientSession() as session:
            yield Gateway(
                service=service,
                backend=backend,
                bus=bus,
                store=store,
                session=session,
                stop=stop,
                exporter=exporter,
            )
        stop.set()
        await running
        playing.cancel()
    await bus.close()
    telemetry.shutdown()
