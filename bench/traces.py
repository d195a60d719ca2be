"""A collector of traces: what a stack says of its requests while it is measured from outside."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_ARRIVE_S = 15.0
"""How long a span may take to get here: services send theirs each second."""


@dataclass(frozen=True, slots=True)
class TraceId:
    """Of a request that a client sends; its services' spans belong to it."""

    hex: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def headers(self) -> dict[str, str]:
        """What makes a server go on with the trace (W3C Trace Context)."""
        return {"traceparent": f"00-{self.hex}-{secrets.token_hex(8)}-01"}


class Collector:
    """Keeps when spans began that come over OTLP, by trace and name; the last of several."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._begins_s: dict[str, dict[str, float]] = defaultdict(dict)
        self._more = asyncio.Condition()

    async def begins_s(self, trace: TraceId, names: set[str]) -> dict[str, float]:
        """Those of a trace's spans by their own process's clock, once all of names are there.

        Raises:
            TimeoutError: they do not come.
        """
        async with asyncio.timeout(_ARRIVE_S), self._more:
            await self._more.wait_for(lambda: names <= self._begins_s[trace.hex].keys())
        return self._begins_s[trace.hex]

    async def take(self, request: web.Request) -> web.Response:
        """One batch of spans, as an exporter sends it."""
        batch = ExportTraceServiceRequest.FromString(await request.read())
        for resource in batch.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    begins_s = self._begins_s[span.trace_id.hex()]
                    begins_s[span.name] = span.start_time_unix_nano / 1e9
        async with self._more:
            self._more.notify_all()
        return web.Response()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port of this machine."""
    collector = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        collector.endpoint = "http://{}:{}".format(*runner.addresses[0])
        yield collector
    finally:
        await runner.cleanup()
