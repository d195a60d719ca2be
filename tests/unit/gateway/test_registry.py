"""Which models exist, as the store's view of them ages, fails and returns."""

import asyncio
from collections.abc import Mapping

import pytest

from anole_gateway.errors import ModelNotFound, Unavailable
from anole_gateway.registry import BaseModel, Registry
from anole_shared.clock import Clock
from anole_shared.codec import encode
from anole_shared.errors import StoreUnavailable
from anole_shared.keys import Collection
from anole_shared.store_memory import MemoryStore
from tests.unit.gateway.harness import adapter

BASE = BaseModel(name="tiny", context_length=256)


class SetClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return self.seconds


class CountingStore(MemoryStore):
    """Counts readings, and can be away or slow."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.num_reads = 0
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def all(self, collection: Collection) -> Mapping[str, bytes]:
        self.num_reads += 1
        await self.gate.wait()
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().all(collection)

    async def add(self, adapter_id: str, **fields: object) -> None:
        await self.put(Collection.ADAPTERS, adapter_id, encode(adapter(adapter_id, **fields)))


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def store(clock: SetClock) -> CountingStore:
    return CountingStore(clock)


@pytest.fixture
def registry(store: CountingStore, clock: SetClock) -> Registry:
    return Registry(BASE, store=store, clock=clock)


async def test_the_base_needs_no_store(registry: Registry, store: CountingStore) -> None:
    store.is_away = True
    model = await registry.resolve("tiny")
    assert (model.name, model.adapter) == ("tiny", None)
    assert store.num_reads == 0


async def test_an_adapter_is_known_by_its_id_alone_or_behind_the_base(
    registry: Registry, store: CountingStore
) -> None:
    await store.add("poet")
    for name in ("poet", "tiny:poet"):
        model = await registry.resolve(name)
        assert model.name == "poet"
        assert model.adapter is not None
        assert model.adapter.rank == 8


async def test_an_unknown_model_gets_a_near_one_named(
    registry: Registry, store: CountingStore
) -> None:
    await store.add("pirate")
    await store.add("poet", refused="rank 999 is too high")
    with pytest.raises(ModelNotFound, match=r"Did you mean 'pirate'.*GET /v1/models"):
        await registry.resolve("pirat")
    with pytest.raises(ModelNotFound) as refused:
        await registry.resolve("poets")
    assert "Did you mean" not in refused.value.message
    with pytest.raises(ModelNotFound):
        await registry.resolve("other:pirate")


async def test_a_refused_adapter_says_why(registry: Registry, store: CountingStore) -> None:
    await store.add("poet", refused="rank 999 is too high")
    with pytest.raises(ModelNotFound, match="'poet' cannot be served: rank 999 is too high") as no:
        await registry.resolve("tiny:poet")
    assert "a restart of the worker reads the adapter folder again" in no.value.message


async def test_the_view_serves_for_a_second(
    registry: Registry, store: CountingStore, clock: SetClock
) -> None:
    await store.add("poet")
    for seconds in (0.0, 0.5, 1.0):
        clock.seconds = seconds
        await registry.resolve("poet")
    assert store.num_reads == 1
    clock.seconds = 1.1
    await registry.resolve("poet")
    assert store.num_reads == 2


async def test_a_miss_looks_again_at_once(registry: Registry, store: CountingStore) -> None:
    await store.add("poet")
    await registry.resolve("poet")
    await store.add("pirate")
    assert (await registry.resolve("pirate")).name == "pirate"


async def test_what_changed_or_went_is_seen(
    registry: Registry, store: CountingStore, clock: SetClock
) -> None:
    await store.add("poet")
    await store.add("pirate")
    await registry.adapters()
    await store.add("poet", rank=64)
    await store.delete(Collection.ADAPTERS, "pirate")
    clock.seconds = 2
    adapters = await registry.adapters()
    assert [(record.adapter_id, record.rank) for record in adapters.values()] == [("poet", 64)]


async def test_many_who_ask_at_once_cost_one_reading(
    registry: Registry, store: CountingStore
) -> None:
    await store.add("poet")
    store.gate.clear()
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(registry.resolve("poet")) for _ in range(20)]
        await asyncio.sleep(0)
        store.gate.set()
    assert {task.result().name for task in asking} == {"poet"}
    assert store.num_reads == 1


async def test_the_last_view_serves_while_the_store_is_away(
    registry: Registry, store: CountingStore, clock: SetClock
) -> None:
    await store.add("poet")
    await registry.adapters()
    store.is_away = True
    clock.seconds = 100
    assert (await registry.resolve("poet")).name == "poet"
    with pytest.raises(ModelNotFound):
        await registry.resolve("pirate")


async def test_nothing_can_be_said_where_the_store_never_answered(
    registry: Registry, store: CountingStore
) -> None:
    store.is_away = True
    with pytest.raises(Unavailable):
        await registry.resolve("poet")
    store.is_away = False
    await store.add("poet")
    assert (await registry.resolve("poet")).name == "poet"


async def test_an_unreadable_record_hides_no_other(
    registry: Registry, store: CountingStore, clock: SetClock
) -> None:
    await store.add("poet")
    await store.put(Collection.ADAPTERS, "broken", b"{}")
    for seconds in (0, 2):
        clock.seconds = seconds
        assert set(await registry.adapters()) == {"poet"}
