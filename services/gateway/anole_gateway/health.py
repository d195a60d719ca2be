"""Whether the gateway lives, whether it can serve, and what Prometheus may know."""

import asyncio
import logging
from collections.abc import Mapping
from typing import TypeVar

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from anole_gateway.admission import Admission
from anole_gateway.metrics import Metrics
from anole_gateway.middlewares import json_response
from anole_shared.bus import Bus
from anole_shared.codec import decode_record
from anole_shared.errors import MessageError, StoreUnavailable
from anole_shared.keys import Collection
from anole_shared.messages import SchedulerRecord, ServiceRecord, WorkerRecord
from anole_shared.store import Store

log = logging.getLogger(__name__)

_STORE_PATIENCE_S = 2.0
"""Probes must be answered even where the store is stuck."""

RecordT = TypeVar("RecordT")


class Health:
    """The three routes that operators' tools ask."""

    def __init__(self, *, bus: Bus, store: Store, admission: Admission, metrics: Metrics) -> None:
        self._bus = bus
        self._store = store
        self._admission = admission
        self._metrics = metrics

    async def health(self, http_request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /health: the process lives."""
        return json_response({"status": "ok"})

    async def ready(self, http_request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /ready: a request would be served; where not, says what is missing."""
        missing = await self._missing()
        if not missing:
            return json_response({"status": "ready", "missing": []})
        return json_response({"status": "not ready", "missing": missing}, status=503)

    async def metrics(self, http_request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /metrics. Workers and scheduler are left out while the store is away."""
        workers = await self._records(Collection.WORKERS, WorkerRecord)
        schedulers = await self._records(Collection.SCHEDULERS, SchedulerRecord)
        body = self._metrics.render((workers or {}).values(), (schedulers or {}).values())
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _missing(self) -> list[str]:
        missing = ["stopping"] if self._admission.is_closed else []
        if not self._bus.is_connected:
            missing.append("bus")
        services = await self._records(Collection.SERVICES, ServiceRecord)
        workers = await self._records(Collection.WORKERS, WorkerRecord)
        if services is None or workers is None:
            return [*missing, "store"]
        if not any(record.kind == "scheduler" for record in services.values()):
            missing.append("scheduler")
        if not workers:
            missing.append("worker")
        return missing

    async def _records(
        self, collection: Collection, record_type: type[RecordT]
    ) -> Mapping[str, RecordT] | None:
        """Every readable record; None where the store does not answer."""
        try:
            async with asyncio.timeout(_STORE_PATIENCE_S):
                bodies = await self._store.all(collection)
        except (StoreUnavailable, TimeoutError) as fault:
            log.warning("%s cannot be read: %s", collection, str(fault) or "no answer")
            return None
        records = {}
        for key, body in bodies.items():
            try:
                records[key] = decode_record(record_type, body)
            except MessageError as fault:
                log.warning("%s %s: %s", collection, key, fault)
        return records
