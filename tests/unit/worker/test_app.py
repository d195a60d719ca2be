"""The service around the engine, with a device that only says where it was made."""

import asyncio
import json
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from anole_shared.bus_memory import MemoryBus
from anole_shared.clock import SystemClock
from anole_shared.lifecycle import Resources
from anole_shared.settings import CommonSettings
from anole_shared.store_memory import MemoryStore
from anole_shared.telemetry import Telemetry
from anole_worker.app import WorkerService
from anole_worker.settings import WorkerSettings
from tests.unit.worker.engines import make_sequence
from tests.unit.worker.peft_folders import SHAPE

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": SHAPE.num_layers,
    "hidden_size": SHAPE.hidden_size,
    "num_attention_heads": SHAPE.num_heads,
    "num_key_value_heads": SHAPE.num_kv_heads,
    "head_dim": SHAPE.head_dim,
    "intermediate_size": SHAPE.intermediate_size,
    "vocab_size": SHAPE.vocab_size,
    "max_position_embeddings": SHAPE.max_model_len,
    "eos_token_id": 2,
    "hidden_act": "silu",
}


class StandIn:
    """In the device's place."""

    block_bytes = 2**20
    memory_bytes = 2**30
    is_on_cpu = True

    def __init__(self, *_: object) -> None:
        """Takes what a device takes."""

    def host_adapters(self) -> tuple[str, ...]:
        """Has no copies of any."""
        return ()

    def adapter_bytes(self, file: object) -> int:
        """Has no memory for any."""
        raise AssertionError(file)

    def close(self) -> None:
        """Holds nothing."""


class DeviceModule(ModuleType):
    """In the place of anole_worker.runtime.device: notes on which thread it is imported."""

    def __init__(self) -> None:
        super().__init__("anole_worker.runtime.device")
        self.threads: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name != "Device":
            raise AttributeError(name)
        self.threads.append(threading.current_thread().name)
        return StandIn


def make_service(model_dir: Path, **settings: Any) -> WorkerService:
    (model_dir / "config.json").write_text(json.dumps(CONFIG))
    clock = SystemClock()
    return WorkerService(
        CommonSettings(),
        WorkerSettings(**settings),
        Resources(bus=MemoryBus(), store=MemoryStore(clock), clock=clock),
        Telemetry("worker"),
        model_dir,
    )


async def test_torch_is_imported_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = DeviceModule()
    monkeypatch.setitem(sys.modules, "anole_worker.runtime.device", module)
    ready, stop = asyncio.Event(), asyncio.Event()
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(make_service(tmp_path).run(ready=ready, stop=stop))
        await ready.wait()
        stop.set()
    assert len(module.threads) == 1
    assert module.threads[0].startswith("anole-engine")


def test_keys_and_values_and_adapters_share_one_budget(tmp_path: Path) -> None:
    engine = make_service(tmp_path)._engine(block_bytes=300, memory_bytes=10_000, is_on_cpu=True)
    assert engine.memory.budget_bytes == 10_000
    assert engine.memory.blocks.num_blocks == 33
    assert engine.memory.used_bytes == 0


@pytest.mark.parametrize("name", ["chameleon", "fairshare", "lru", "gdsf"])
def test_every_eviction_policy_can_be_chosen(tmp_path: Path, name: str) -> None:
    engine = make_service(tmp_path, eviction=name)._engine(
        block_bytes=2**20, memory_bytes=2**30, is_on_cpu=True
    )
    assert engine.memory.adapters.used_bytes == 0


@pytest.mark.parametrize(
    ("given", "is_on_cpu", "first"),
    [(None, True, "short"), (None, False, "long"), (0.0, True, "long"), (9.0, False, "short")],
)
def test_short_prompts_pass_long_ones_on_a_processor_or_where_it_is_set(
    tmp_path: Path, given: float | None, first: str, *, is_on_cpu: bool
) -> None:
    settings = {} if given is None else {"prompt_passing": given}
    pace = make_service(tmp_path, **settings)._pace(256, is_on_cpu=is_on_cpu)
    for _ in range(9):
        pace.learn(prompt_tokens=100, rows=0, seconds=1.0)
    long = make_sequence("long", prompt=200, arrived_s=0.0)
    short = make_sequence("short", prompt=20, arrived_s=1.0)
    assert min((long, short), key=pace.key).request_id == first
