"""Steps of a tiny model on the runner of a GPU, wherever its kernels run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anole_shared.settings import load
from anole_worker import adapter_files
from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Row, Step
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.adapters import load as load_adapter
from anole_worker.runtime.cpu_batches import CpuBatches
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.lora_table import make_table
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.weights import load_model
from anole_worker.settings import WorkerSettings
from tests.unit.worker.tiny import BLOCK_SIZE, adapter_of, no_grammars, row, step

Adapters = dict[Adapter, LoadedAdapter]

MAX_NUM_SEQS = 6
NUM_BLOCKS = 60
SETTINGS = {"block_size": BLOCK_SIZE, "max_num_seqs": MAX_NUM_SEQS, "token_budget": 24}


class Same:
    """Records nothing: a replay is the call itself. So all that is recorded runs anywhere."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_recorded += 1
        return call


def steps() -> list[Step]:
    """Prompts, chunks and single tokens of sequences that come and go, with adapters and without.

    Steps of single tokens fill what is recorded, or leave rows of it over, or one of them was there
    before with other rows.
    """
    lengths = {"long": 21, "short": 3, "base": 6, "other": 9, "twin": 9, "last": 1}
    adapters = {"long": "all", "short": "some", "base": None, "other": "attention", "twin": "all"}
    blocks = {name: list(range(9 * n, 9 * n + 9))[::-1] for n, name in enumerate(lengths)}
    done = dict.fromkeys(lengths, 0)

    def of(name: str, count: int, **choice: object) -> Row:
        tokens = [3 + (7 * n + len(name)) % 120 for n in range(done[name], done[name] + count)]
        done[name] += count
        start = done[name] - count
        return row(name, tokens, blocks[name], start=start, adapter=adapters.get(name), **choice)

    found = [
        step(of("long", 9, sampling=None), of("short", 2, sampling=None), of("base", 6)),
        step(of("long", 12), of("short", 1), of("base", 1), of("other", 9), of("twin", 9)),
    ]
    names = ["long", "short", "base", "other", "twin", "last"]
    for count in (1, 6, 3, 1):
        found.append(step(*(of(name, 1) for name in names[:count])))
        names = names[1:] + names[:1]
    return found


def expected(model: Path, folders: dict[str, Path]) -> list[Tensor]:
    """Each step's logits by the runner of a CPU."""
    weights = load_model(model)
    cache = KvCache(weights.shape, NUM_BLOCKS, BLOCK_SIZE)
    runner = ModelRunner(weights, CpuBatches(weights, cache), no_grammars(model))
    adapters = loaded(folders, model, torch.device("cpu"))
    return [runner.logits(one, adapters) for one in steps()]


def found(
    model: Path, folders: dict[str, Path], device_name: str, *, is_recorded: bool
) -> list[Tensor]:
    """The same by the runner of a GPU."""
    from anole_worker.runtime.decode_graphs import CudaRecorder, Recorder
    from anole_worker.runtime.gpu_runner import GpuRunner

    device = torch.device(device_name)
    weights = load_model(model, device=device)
    settings = load(WorkerSettings, **SETTINGS)
    recorder: Recorder | None = None
    if is_recorded:
        recorder = CudaRecorder(device) if device.type == "cuda" else Same()
    gpu = GpuRunner(weights, settings, no_grammars(model), recorder)
    if device.type == "cuda":
        gpu.warm_up()
        assert gpu.blocks.num_with_memory == 0
    if isinstance(recorder, Same):
        assert recorder.num_recorded == 2 * len([1, 2, 4, 6])
    adapters = loaded(folders, model, device)
    return [gpu.runner.logits(one, adapters).cpu() for one in steps()]


def loaded(folders: dict[str, Path], model: Path, device: torch.device) -> Adapters:
    """The adapters on the device, with their tables."""
    shape = load_model(model).shape
    result = {}
    for name, folder in folders.items():
        file = adapter_files.read(folder, shape)
        adapter = load_adapter(file, bytearray(file.packed_bytes(4)))
        copy = adapter.over(adapter.arena.to(device, copy=True))
        copy.table = make_table(copy.layers, shape).to(device)
        result[adapter_of(name)] = copy
    return result
