"""What GET /v1/models lists."""

from pathlib import Path

from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.keys import Collection
from anole_shared.store_memory import MemoryStore
from tests.unit.gateway.conftest import CONTEXT_LENGTH
from tests.unit.gateway.harness import adapter, serving


async def test_the_base_and_every_servable_adapter_are_listed(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        await gateway.add_adapter(adapter("poet"))
        await gateway.add_adapter(adapter("broken", refused="no weights"))
        answer = await gateway.get("/v1/models")
    assert answer.status == 200
    assert answer.json["object"] == "list"
    base, poet = answer.json["data"]
    created = base.pop("created")
    assert base == {
        "id": "tiny",
        "object": "model",
        "owned_by": "anole",
        "root": "tiny",
        "parent": None,
        "max_model_len": CONTEXT_LENGTH,
    }
    assert poet == {
        "id": "poet",
        "object": "model",
        "created": created,
        "owned_by": "anole",
        "root": "poet",
        "parent": "tiny",
        "rank": 8,
        "target_modules": ["q_proj", "v_proj"],
    }


async def test_one_model_can_be_looked_at(model_dir: Path) -> None:
    async with serving(model_dir) as gateway:
        await gateway.add_adapter(adapter("poet"))
        assert (await gateway.get("/v1/models/tiny")).json["parent"] is None
        assert (await gateway.get("/v1/models/tiny:poet")).json["id"] == "poet"
        missing = await gateway.get("/v1/models/some/where")
    assert missing.status == 404
    assert missing.error["code"] == "model_not_found"


async def test_without_a_store_there_is_no_list(model_dir: Path) -> None:
    class Forgetful(MemoryStore):
        async def all(self, collection: Collection) -> dict[str, bytes]:
            await self.close()
            return dict(await super().all(collection))

    store = Forgetful(SystemClock())
    async with serving(model_dir, bus=MemoryBus(), store=store) as gateway:
        answer = await gateway.get("/v1/models")
        assert (await gateway.get("/v1/models/tiny")).status == 200
    assert answer.status == 503
    assert answer.error["code"] == "service_unavailable"
