"""The gateway as a whole: builds its parts, serves until told to stop, lets streams finish."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from anole_gateway import tokenizer as tokenizers
from anole_gateway.aborts import Aborts
from anole_gateway.admission import Admission
from anole_gateway.completions import Completions
from anole_gateway.generation import Means
from anole_gateway.grammars import Grammars
from anole_gateway.health import Health
from anole_gateway.metrics import Metrics
from anole_gateway.middlewares import answer_errors, counting, identify, sign
from anole_gateway.models import Models
from anole_gateway.registry import BaseModel, Registry
from anole_gateway.settings import GatewaySettings
from anole_gateway.streams import Streams
from anole_gateway.tokenization import Tokenization
from anole_gateway.tokenizer import Tokenizer
from anole_shared.bus import Delivery
from anole_shared.errors import BusUnavailable, ConfigurationError
from anole_shared.ids import GatewayId
from anole_shared.lifecycle import Resources, keep_alive
from anole_shared.settings import CommonSettings
from anole_shared.telemetry import Telemetry
from anole_shared.topology import gateway_queue

log = logging.getLogger(__name__)

_PREFETCH = 256
"""Messages of tokens on their way to us; they need no acknowledgement."""

_BACKLOG = 1024
"""Connections that may wait to be accepted: bursts come at once."""

_CLOSING_S = 1.0
"""How long connections may take to close when all streams are done or told to be."""


class GatewayService:
    """The REST API over the bus; a service as lifecycle runs it."""

    name = "gateway"

    def __init__(
        self,
        common: CommonSettings,
        settings: GatewaySettings,
        resources: Resources,
        telemetry: Telemetry,
        model_dir: Path,
    ) -> None:
        """model_dir: the base model's folder; its tokenizer and config.json are read."""
        self.gateway_id = GatewayId(secrets.token_hex(4))
        self.port = settings.port
        self._model_name = common.model_name or model_dir.resolve().name
        self._settings = settings
        self._resources = resources
        self._telemetry = telemetry
        self._model_dir = model_dir
        self._streams = Streams()
        self._aborts = Aborts(resources.bus)
        self._grammars = Grammars(model_dir)
        self._metrics = Metrics()
        self._admission = Admission(
            max_concurrent=settings.max_concurrent_requests, retry_after_s=settings.retry_after_s
        )

    async def run(self, *, ready: asyncio.Event, stop: asyncio.Event) -> None:
        """Serve until stop, then let running completions finish for drain_s.

        Raises:
            ConfigurationError: the model's folder or the address cannot be used.
            BusUnavailable: the bus was closed under us.
        """
        context_length = tokenizers.context_length(self._model_dir)
        tokenizer = await asyncio.to_thread(tokenizers.load, self._model_dir)
        base = BaseModel(name=self._model_name, context_length=context_length)
        queue = gateway_queue(self.gateway_id)
        async with (
            self._resources.bus.consume(
                queue, prefetch=_PREFETCH, on_gap=self._streams.tell_gap
            ) as deliveries,
            self._listening(self._application(tokenizer, base)) as runner,
            asyncio.TaskGroup() as tasks,
        ):
            receiving = tasks.create_task(self._receive(deliveries), name="gateway.receive")
            aborting = tasks.create_task(self._aborts.run(), name="gateway.aborts")
            compiling = tasks.create_task(self._grammars.run(), name="gateway.grammars")
            tasks.create_task(
                keep_alive(self._resources, self.name, self.gateway_id, stop),
                name="gateway.keep_alive",
            )
            log.info("serving %s on http://%s:%d", self._model_name, self._settings.host, self.port)
            ready.set()
            await stop.wait()
            await self._drain(runner)
            receiving.cancel()
            aborting.cancel()
            compiling.cancel()

    def _application(self, tokenizer: Tokenizer, base: BaseModel) -> web.Application:
        bus, store, clock = self._resources.bus, self._resources.store, self._resources.clock
        registry = Registry(base, store=store, clock=clock)
        completions = Completions(
            gateway_id=self.gateway_id,
            settings=self._settings,
            tokenizer=tokenizer,
            registry=registry,
            grammars=self._grammars,
            admission=self._admission,
            streams=self._streams,
            means=Means(
                bus=bus,
                aborts=self._aborts,
                metrics=self._metrics,
                tracer=self._telemetry.tracer,
                retry_after_s=self._settings.retry_after_s,
            ),
            clock=clock,
        )
        tokenization = Tokenization(
            tokenizer=tokenizer,
            registry=registry,
            max_body_bytes=self._settings.max_body_bytes,
        )
        models = Models(registry, created_s=int(clock.wall()))
        health = Health(bus=bus, store=store, admission=self._admission, metrics=self._metrics)
        app = web.Application(
            client_max_size=self._settings.max_body_bytes,
            middlewares=[identify, counting(self._metrics), answer_errors],
        )
        app.on_response_prepare.append(sign)
        app.add_routes(
            [
                web.post("/v1/chat/completions", completions.chat),
                web.post("/v1/completions", completions.text),
                web.post("/tokenize", tokenization.tokenize),
                web.post("/detokenize", tokenization.detokenize),
                web.get("/v1/models", models.list),
                web.get("/v1/models/{model:.+}", models.show),
                web.get("/health", health.health),
                web.get("/ready", health.ready),
                web.get("/metrics", health.metrics),
            ]
        )
        return app

    @asynccontextmanager
    async def _listening(self, app: web.Application) -> AsyncIterator[web.AppRunner]:
        runner = web.AppRunner(
            app,
            handler_cancellation=True,
            auto_decompress=False,
            access_log=None,
            shutdown_timeout=_CLOSING_S,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._settings.host, self._settings.port, backlog=_BACKLOG)
            try:
                await site.start()
            except OSError as fault:
                raise ConfigurationError(
                    f"the gateway cannot listen on {self._settings.host}:{self._settings.port}: "
                    f"{fault.strerror or fault}. Set ANOLE_GATEWAY_PORT (0 picks a free port) or "
                    "ANOLE_GATEWAY_HOST, or stop what uses it."
                ) from fault
            self.port = runner.addresses[0][1]
            yield runner
        finally:
            await runner.cleanup()

    async def _receive(self, deliveries: AsyncIterator[Delivery]) -> None:
        async for delivery in deliveries:
            self._streams.deliver(delivery.message)
        raise BusUnavailable("the bus was closed while the gateway was serving")

    async def _drain(self, runner: web.AppRunner) -> None:
        self._admission.close()
        try:
            async with asyncio.timeout(self._settings.drain_s):
                await self._admission.idle()
        except TimeoutError:
            log.warning("%d completions do not end in time and are given up", len(self._streams))
            self._streams.end_all("the gateway is stopping")
        await runner.cleanup()
        await self._aborts.flush(_CLOSING_S)
