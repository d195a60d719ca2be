"""What probes are told, part by part."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from anole_gateway import health as module
from anole_gateway.admission import Admission
from anole_gateway.health import Health
from anole_gateway.metrics import Metrics
from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.codec import encode
from anole_shared.ids import AdapterId, WorkerId
from anole_shared.keys import Collection
from anole_shared.messages import ServiceRecord, WorkerCapacity, WorkerRecord
from anole_shared.store import Store
from anole_shared.store_memory import MemoryStore
from tests.unit.gateway.harness import serving

SCHEDULER = ServiceRecord(kind="scheduler", service_id="s0", host="h0", started_s=0)
WORKER = WorkerRecord(
    worker_id=WorkerId("w0"),
    model="tiny",
    capacity=WorkerCapacity(
        max_num_seqs=8, block_size=16, block_bytes=10, memory_bytes=1000, max_model_len=256
    ),
    num_running=3,
    num_free_blocks=70,
    resident=(AdapterId("poet"), AdapterId("pirate")),
    loading=(AdapterId("bard"),),
)


async def populate(store: Store) -> None:
    await store.put(Collection.SERVICES, "scheduler:s0", encode(SCHEDULER))
    await store.put(Collection.WORKERS, "w0", encode(WORKER))


async def test_a_gateway_alone_lives_but_is_not_ready(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        health, ready = await gateway.get("/health"), await gateway.get("/ready")
    assert (health.status, health.json) == (200, {"status": "ok"})
    assert ready.status == 503
    assert ready.json == {"status": "not ready", "missing": ["scheduler", "worker"]}


async def test_it_is_ready_with_scheduler_and_worker(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        await populate(gateway.store)
        ready = await gateway.get("/ready")
    assert (ready.status, ready.json["missing"]) == (200, [])


class Parts:
    """A Health whose surroundings can be broken one by one."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.bus = MemoryBus()
        self.store = store or MemoryStore(SystemClock())
        self.admission = Admission(max_concurrent=1, retry_after_s=1)
        self.health = Health(
            bus=self.bus, store=self.store, admission=self.admission, metrics=Metrics()
        )


async def test_what_is_missing_is_named() -> None:
    parts = Parts()
    await populate(parts.store)
    assert await parts.health._missing() == []
    parts.admission.close()
    assert await parts.health._missing() == ["stopping"]
    await parts.bus.close()
    assert await parts.health._missing() == ["stopping", "bus"]
    await parts.store.close()
    assert await parts.health._missing() == ["stopping", "bus", "store"]


async def test_a_store_that_hangs_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(MemoryStore):
        async def all(self, collection: Collection) -> Mapping[str, bytes]:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(module, "_STORE_PATIENCE_S", 0.01)
    assert await Parts(Stuck(SystemClock())).health._missing() == ["store"]


async def test_records_that_cannot_be_read_do_not_count() -> None:
    parts = Parts()
    await populate(parts.store)
    await parts.store.put(Collection.WORKERS, "w0", b"{}")
    assert await parts.health._missing() == ["worker"]


async def test_metrics_show_the_workers(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        await populate(gateway.store)
        answer = await gateway.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.body.decode().splitlines()
    for line in (
        'anole_worker_running_requests{worker="w0"} 3.0',
        'anole_worker_blocks{worker="w0"} 100.0',
        'anole_worker_free_blocks{worker="w0"} 70.0',
        'anole_worker_resident_adapters{worker="w0"} 2.0',
        'anole_worker_loading_adapters{worker="w0"} 1.0',
    ):
        assert line in lines
