"""`python -m bench` (or `make bench`): what adapters cost a decode step, against the base model.

Both sides run in one process, one thread, in turns, so that a noisy machine hits them alike; the
figure is the ratio of their median CPU times. The floor is what moving the weights alone would
take: (model + adapters) / model, in bytes.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from anole_shared.ids import AdapterId, RequestId
from anole_shared.settings import CommonSettings, load
from anole_worker import adapter_files, model_shape
from anole_worker.adapter_files import AdapterFile
from anole_worker.core.step import Row, Sampling, Step
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.adapters import load as load_adapter
from anole_worker.runtime.kv_cache import KvCache
from anole_worker.runtime.model_runner import ModelRunner
from anole_worker.runtime.weights import load_model

EXAMPLES = Path(__file__).parents[1] / "examples" / "adapters"
BLOCK_SIZE = 16
CONTEXT = 128
GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A decode step to measure: how many rows, and which adapter each of them uses."""

    name: str
    adapters: tuple[AdapterId | None, ...]


def decode_step(adapters: Sequence[AdapterId | None]) -> Step:
    """One new token for each row, at the end of a context of 128 tokens."""
    blocks = CONTEXT // BLOCK_SIZE
    rows = [
        Row(
            request_id=RequestId(str(index)),
            adapter_id=adapter_id,
            token_ids=(100 + index,),
            start=CONTEXT - 1,
            block_table=tuple(range(index * blocks, (index + 1) * blocks)),
            sampling=GREEDY,
        )
        for index, adapter_id in enumerate(adapters)
    ]
    rows.sort(key=lambda row: (row.adapter_id is not None, row.adapter_id or ""))
    return Step(rows=tuple(rows))


def load_copies(
    files: Sequence[AdapterFile], copies: int
) -> tuple[dict[AdapterId, LoadedAdapter], dict[AdapterId, int]]:
    """Each example adapter several times under other names, each in memory of its own."""
    loaded, sizes = {}, {}
    for copy in range(copies):
        for file in files:
            name = AdapterId(f"{file.adapter_id}-{copy}")
            buffer = memoryview(bytearray(file.packed_bytes))
            loaded[name] = load_adapter(file, buffer)
            sizes[name] = file.packed_bytes
    return loaded, sizes


def measure(
    runner: ModelRunner, case: Case, loaded: dict[AdapterId, LoadedAdapter], rounds: int
) -> tuple[float, float]:
    """Median CPU seconds of a step of the base model, and of the case, run in turns."""
    base = decode_step([None] * len(case.adapters))
    adapted = decode_step(case.adapters)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for step, found in zip((base, adapted), seconds, strict=True):
            begin = time.process_time()
            runner.run(step, loaded)
            found.append(time.process_time() - begin)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:])


def cases(names: Sequence[AdapterId], num_rows: int) -> list[Case]:
    """No two rows alike, four adapters shared, one adapter shared."""
    few = [names[index % 4] for index in range(num_rows)]
    return [
        Case(name=f"{num_rows} rows, {num_rows} adapters", adapters=tuple(names[:num_rows])),
        Case(name=f"{num_rows} rows, 4 adapters", adapters=tuple(few)),
        Case(name=f"{num_rows} rows, 1 adapter", adapters=(names[0],) * num_rows),
    ]


def model_bytes(shape: ModelShape) -> int:
    """fp32 bytes of the weights that a step reads."""
    layer = sum(inputs * outputs for inputs, outputs in shape.module_dims.values())
    return 4 * (shape.num_layers * layer + shape.vocab_size * shape.hidden_size)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="steps a side (%(default)s)")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    common = load(CommonSettings)
    folder = Path(common.model or common.cache_dir / "models" / "smollm2-135m-instruct")
    shape = model_shape.read(folder)
    files, _ = adapter_files.discover(EXAMPLES, shape)
    loaded, sizes = load_copies(files, copies=4)
    cache = KvCache(shape, num_blocks=16 * CONTEXT // BLOCK_SIZE, block_size=BLOCK_SIZE)
    runner = ModelRunner(load_model(folder), cache)
    print("| decode step, context 128 | base ms | with adapters ms | ratio | floor |")
    print("|---|---|---|---|---|")
    for num_rows in (8, 16):
        for case in cases(sorted(loaded), num_rows):
            base, adapted = measure(runner, case, loaded, rounds)
            extra = sum(sizes[name] for name in set(case.adapters) if name is not None)
            floor = 1 + extra / model_bytes(shape)
            ratio = adapted / base
            print(
                f"| {case.name} | {base * 1e3:.0f} | {adapted * 1e3:.0f} "
                f"| {ratio:.2f} | {floor:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
