"""What the store shows."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest

from anole_scheduler import mirror as mirror_module
from anole_scheduler.core.commands import (
    ForgetAdapter,
    ForgetWorker,
    RecordAdapter,
    RecordWorker,
)
from anole_scheduler.core.events import Recalled, WorkerSeen
from anole_scheduler.mirror import Mirror
from anole_scheduler.translate import adapter_record_of
from anole_shared.codec import decode_record, encode
from anole_shared.errors import StoreUnavailable
from anole_shared.keys import LEASE_S, Collection, Role
from anole_shared.messages import AdapterRecord, WorkerRecord
from anole_shared.store_memory import MemoryStore
from tests.clocks import HandClock
from tests.traffic import until
from tests.unit.scheduler.playbook import CAPACITY, adapter

WORKER = RecordWorker(
    worker_id="w1",
    model="tiny",
    capacity=CAPACITY,
    num_running=0,
    num_free_blocks=100,
    resident=(),
    loading=(),
    is_new=True,
)


class RestlessStore(MemoryStore):
    """Does not answer while it is away."""

    is_away = False

    async def all(self, collection: Collection) -> Mapping[str, bytes]:
        self._answer()
        return await super().all(collection)

    async def claim(self, role: Role) -> int:
        self._answer()
        return await super().claim(role)

    def _answer(self) -> None:
        if self.is_away:
            raise StoreUnavailable("no connection")


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def store(clock: HandClock) -> RestlessStore:
    return RestlessStore(clock)


async def test_a_worker_is_shown_for_one_lease(store: RestlessStore, clock: HandClock) -> None:
    mirror = Mirror(store)
    mirror.apply(WORKER)
    assert await mirror.flush()
    body = await store.get(Collection.WORKERS, "w1")
    assert body is not None
    assert decode_record(WorkerRecord, body).model == "tiny"
    clock.time_s += LEASE_S
    assert await store.get(Collection.WORKERS, "w1") is None


async def test_what_is_forgotten_is_removed(store: RestlessStore) -> None:
    mirror = Mirror(store)
    mirror.apply(WORKER)
    mirror.apply(RecordAdapter(adapter=adapter("a")))
    await mirror.flush()
    mirror.apply(ForgetWorker(worker_id="w1", reason="it has stopped"))
    mirror.apply(ForgetAdapter(adapter_id="a", reason="no worker has it"))
    await mirror.flush()
    assert await store.all(Collection.WORKERS) == {}
    assert await store.all(Collection.ADAPTERS) == {}


async def test_what_one_scheduler_has_recorded_the_next_one_recalls(store: RestlessStore) -> None:
    mirror = Mirror(store)
    await mirror.take_over()
    mirror.apply(RecordAdapter(adapter=adapter("a", refused="torn")))
    mirror.apply(replace(WORKER, resident=("a",), loading=("b",), host=("c",), is_draining=True))
    await mirror.flush()
    seen = WorkerSeen(
        worker_id="w1",
        model="tiny",
        capacity=CAPACITY,
        running=(),
        num_free_blocks=100,
        resident=("a",),
        loading=("b",),
        host=("c",),
        is_draining=True,
    )
    assert await Mirror(store).take_over() == Recalled(
        adapters=(adapter("a", refused="torn"),), workers=(seen,)
    )


async def test_a_record_that_cannot_be_read_is_skipped(store: RestlessStore) -> None:
    await store.put(Collection.ADAPTERS, "a", b"{}")
    await store.put(Collection.ADAPTERS, "b", encode(adapter_record_of(adapter("b"))))
    recalled = await Mirror(store).take_over()
    assert recalled == Recalled(adapters=(adapter("b"),), workers=())


async def test_without_a_store_the_scheduler_starts_with_nothing(store: RestlessStore) -> None:
    store.is_away = True
    assert await Mirror(store).take_over() == Recalled(adapters=(), workers=())


async def test_who_was_succeeded_finds_out_and_writes_nothing_more(store: RestlessStore) -> None:
    before, after = Mirror(store), Mirror(store)
    await before.take_over()
    assert await before.flush()
    was_deposed = before.is_deposed
    await after.take_over()
    after.apply(WORKER)
    await after.flush()
    before.apply(ForgetWorker(worker_id="w1", reason="no report"))
    assert await before.flush()
    assert (was_deposed, before.is_deposed, after.is_deposed) == (False, True, False)
    assert (await store.all(Collection.WORKERS)).keys() == {"w1"}


async def test_what_a_store_misses_while_away_is_written_when_it_is_back(
    store: RestlessStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirror_module, "_RETRY_S", 0.001)
    caplog.set_level(logging.INFO)
    mirror = Mirror(store)
    store.is_away = True
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(mirror.run())
        mirror.apply(RecordAdapter(adapter=adapter("a")))
        await until(lambda: "the store is away" in caplog.text)
        mirror.apply(RecordAdapter(adapter=adapter("a", generation="2")))
        store.is_away = False
        await until(lambda: "the store answers again" in caplog.text)
        running.cancel()
    body = await store.get(Collection.ADAPTERS, "a")
    assert body is not None
    assert decode_record(AdapterRecord, body).generation == "2"
    assert caplog.text.count("the store is away") == 1
