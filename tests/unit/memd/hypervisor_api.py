"""Cloud Hypervisor and Firecracker as their published interfaces describe them, on unix sockets.

The messages below are what vmm/src/api/openapi/cloud-hypervisor.yaml (0.3.0) and
src/firecracker/swagger/firecracker.yaml (1.17) say, field by field, of what memd uses of them: they
are taken strictly, so that a field that is not in there, or of another type, is answered with 400.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Strict(BaseModel):
    """No other field, no other type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class VmResizeZone(Strict):
    id: str
    desired_ram: int


class MemoryZoneConfig(Strict):
    id: str
    size: int
    hotplug_size: int | None = None
    hotplugged_size: int | None = None


class MemoryConfig(Strict):
    size: int
    hotplug_method: str = "VirtioMem"
    zones: list[MemoryZoneConfig]


class NumaConfig(Strict):
    guest_numa_id: int
    memory_zones: list[str]


class VmConfig(Strict):
    payload: dict[str, str] = {}
    memory: MemoryConfig
    numa: list[NumaConfig]


class VmInfo(Strict):
    config: VmConfig
    state: str = "Running"
    memory_actual_size: int


class MemoryHotplugConfig(Strict):
    total_size_mib: int
    slot_size_mib: int = Field(default=128, ge=128)
    block_size_mib: int = Field(default=2, ge=2)


class MemoryHotplugSizeUpdate(Strict):
    requested_size_mib: int


class MemoryHotplugStatus(Strict):
    total_size_mib: int
    slot_size_mib: int
    block_size_mib: int
    plugged_size_mib: int
    requested_size_mib: int


@dataclass
class FakeCloudHypervisor:
    """A machine with zones, whose guest brings each to a size."""

    socket: Path
    zones: dict[str, MemoryZoneConfig]
    nodes: dict[str, int]
    follows: Callable[[MemoryZoneConfig], int] = lambda zone: zone.hotplugged_size or 0
    resized: list[VmResizeZone] = field(default_factory=list)

    async def info(self, _: web.Request) -> web.Response:
        boot = sum(zone.size for zone in self.zones.values())
        plugged = sum(self.follows(zone) for zone in self.zones.values())
        numa = [
            NumaConfig(guest_numa_id=node, memory_zones=[zone]) for zone, node in self.nodes.items()
        ]
        memory = MemoryConfig(size=0, zones=list(self.zones.values()))
        config = VmConfig(memory=memory, numa=numa)
        return _json(VmInfo(config=config, memory_actual_size=boot + plugged))

    async def resize_zone(self, request: web.Request) -> web.Response:
        wanted = VmResizeZone.model_validate_json(await request.read())
        zone = self.zones.get(wanted.id)
        if zone is None or not 0 <= wanted.desired_ram - zone.size <= (zone.hotplug_size or 0):
            return web.Response(status=500, text='["Error from API","zone could not be resized"]')
        self.resized.append(wanted)
        zone.hotplugged_size = wanted.desired_ram - zone.size
        return web.Response(status=204)


@dataclass
class FakeFirecracker:
    """A microVM, whose guest brings its memory to a size."""

    socket: Path
    config: MemoryHotplugConfig | None = None
    requested_mib: int = 0
    follows: Callable[[int], int] = lambda requested_mib: requested_mib
    updates: list[int] = field(default_factory=list)
    is_silent: bool = False

    async def put(self, request: web.Request) -> web.Response:
        self.config = MemoryHotplugConfig.model_validate_json(await request.read())
        return web.Response(status=204)

    async def get(self, _: web.Request) -> web.Response:
        if self.is_silent:
            await asyncio.sleep(60)
        if self.config is None:
            return _fault("The memory hotplug device is not configured.")
        return _json(
            MemoryHotplugStatus(
                **self.config.model_dump(),
                plugged_size_mib=self.follows(self.requested_mib),
                requested_size_mib=self.requested_mib,
            )
        )

    async def patch(self, request: web.Request) -> web.Response:
        wanted = MemoryHotplugSizeUpdate.model_validate_json(await request.read())
        if self.config is None or wanted.requested_size_mib > self.config.total_size_mib:
            return _fault("Requested size is larger than the total size.")
        self.requested_mib = wanted.requested_size_mib
        self.updates.append(self.requested_mib)
        return web.Response(status=204)


def _json(model: BaseModel) -> web.Response:
    return web.json_response(text=model.model_dump_json(exclude_none=True))


def _fault(message: str) -> web.Response:
    return web.json_response({"fault_message": message}, status=400)


@web.middleware
async def _strict(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    if request.body_exists and request.content_type != "application/json":
        return web.Response(status=415)
    try:
        return await handler(request)
    except ValidationError as fault:
        return web.Response(status=400, text=str(fault))


@asynccontextmanager
async def cloud_hypervisor(machine: FakeCloudHypervisor) -> AsyncIterator[None]:
    routes = [
        web.get("/api/v1/vm.info", machine.info),
        web.put("/api/v1/vm.resize-zone", machine.resize_zone),
    ]
    async with _listening(machine.socket, routes):
        yield


@asynccontextmanager
async def firecracker(microvm: FakeFirecracker) -> AsyncIterator[None]:
    path = "/hotplug/memory"
    routes = [
        web.get(path, microvm.get),
        web.put(path, microvm.put),
        web.patch(path, microvm.patch),
    ]
    async with _listening(microvm.socket, routes):
        yield


@asynccontextmanager
async def _listening(socket: Path, routes: list[web.RouteDef]) -> AsyncIterator[None]:
    app = web.Application(middlewares=[_strict])
    app.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    try:
        yield
    finally:
        await runner.cleanup()
