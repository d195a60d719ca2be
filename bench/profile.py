"""Where the time of a decode step goes: within the forward pass, and between one and the next."""

import asyncio
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from anole_worker.core.adapter import Adapter
from anole_worker.core.step import Step
from anole_worker.runtime import cpu_batches, model_runner
from anole_worker.runtime.adapters import LoadedAdapter
from anole_worker.runtime.cpu_batches import CpuBatches
from anole_worker.runtime.device import Device
from anole_worker.runtime.lora import LoopDeltas
from anole_worker.runtime.lora_rows import RowsDeltas
from anole_worker.runtime.network import Batch, Network
from anole_worker.runtime.projection import Projection
from bench import adapters
from bench.adapters import mixed_name
from bench.load_client import Job, run
from bench.rig import CONTEXT, Rig, dtypes, name_of, rigged
from bench.section import Plan, progress
from bench.table import Column, Record, Table
from bench.worker import serving

NUM_ROWS = 16
PARTS: Mapping[str, Sequence[tuple[object, str]]] = {
    "linear layers": ((Projection, "__call__"),),
    "output head": ((Network, "head"),),
    "adapters": ((RowsDeltas, "add"), (LoopDeltas, "add")),
    "attention, KV read and written": ((cpu_batches, "attend"),),
    "norms": ((Network, "_norm"),),
    "rotary positions": ((Network, "_rotate"),),
    "laying the step out": ((CpuBatches, "make"), (Network, "_inputs")),
    "drawing tokens": ((model_runner, "sample"),),
}
KEEPS = frozenset({"output head"})
"""Parts that keep what they call: the head is a linear layer, too."""
REST = "activations, residuals, Python"
WHOLE = "whole step, part by part"
SERVED = "whole step, as it is served"
_ANSWER_TOKENS, _QUICK_ANSWER_TOKENS = 64, 24
_LIMIT_S = 300.0


class Stopwatch:
    """CPU time by part; what a part calls that is another part counts for that one alone."""

    def __init__(
        self, clock: Callable[[], float] = time.process_time, keeps: Collection[str] = ()
    ) -> None:
        """keeps: the parts for which what they call counts instead."""
        self._clock = clock
        self._keeps = keeps
        self._seconds: dict[str, float] = {}
        self._within: list[str] = []
        self._since = 0.0

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def enter(self, part: str) -> None:
        """From now on it is this part's time."""
        self._credit()
        is_kept = self._within and self._within[-1] in self._keeps
        self._within.append(self._within[-1] if is_kept else part)

    def leave(self) -> None:
        """The part has ended."""
        self._credit()
        self._within.pop()

    def _credit(self) -> None:
        now = self._clock()
        if self._within:
            part = self._within[-1]
            self._seconds[part] = self._seconds.get(part, 0.0) + now - self._since
        self._since = now

    def wrapped(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function or method, with its time taken."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the function takes
            self.enter(part)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return timed


@contextmanager
def watching(watch: Stopwatch, parts: Mapping[str, Sequence[tuple[object, str]]]) -> Iterator[None]:
    """Have the watch take the time of these functions, given by where they are looked up."""
    places = [(part, owner, name) for part, found in parts.items() for owner, name in found]
    before = [getattr(owner, name) for _, owner, name in places]
    try:
        for (part, owner, name), call in zip(places, before, strict=True):
            setattr(owner, name, watch.wrapped(part, call))
        yield
    finally:
        for (_, owner, name), call in zip(places, before, strict=True):
            setattr(owner, name, call)


def measure(plan: Plan) -> list[Table]:
    """The parts of a step, then what lies between two steps."""
    rows: list[Record] = []
    for dtype in dtypes(plan):
        with rigged(plan, dtype) as rig:
            rig.fill(NUM_ROWS)
            rows += _parts(plan, rig)
    return [_parts_table(rows), _between_table(asyncio.run(_between(plan)))]


def _parts(plan: Plan, rig: Rig) -> list[Record]:
    progress(f"    {name_of(rig.dtype)}, {NUM_ROWS} rows")
    none: list[Adapter | None] = [None] * NUM_ROWS
    steps = {
        "base": rig.decode(none),
        "adapters": rig.decode(rig.load_distinct(adapters.read_mixed(plan), NUM_ROWS)),
    }
    found = {
        name: [_one_step(rig, step) for _ in range(plan.rounds)] for name, step in steps.items()
    }
    return [_row(name_of(rig.dtype), part, found) for part in (*PARTS, REST, WHOLE, SERVED)]


def _one_step(rig: Rig, step: Step) -> dict[str, float]:
    """Seconds by part, and of the step in one call where it is served so."""
    watch = Stopwatch(keeps=KEEPS)
    served = Stopwatch()
    served.wrapped(SERVED, rig.device.run)(step)
    # In one call for all layers, its parts could not be told apart.
    with patch.object(CpuBatches, "make", _loop_by_loop), watching(watch, PARTS):
        watch.wrapped(REST, rig.device.run)(step)
    seconds = watch.take()
    return {**seconds, WHOLE: sum(seconds.values()), **served.take()}


_make = CpuBatches.make


def _loop_by_loop(
    batches: CpuBatches, step: Step, adapters: Mapping[Adapter, LoadedAdapter]
) -> list[Batch]:
    return [replace(batch, layers=None) for batch in _make(batches, step, adapters)]


def _row(dtype: str, part: str, found: Mapping[str, list[dict[str, float]]]) -> Record:
    medians = {
        name: statistics.median(step.get(part, 0.0) for step in steps)
        for name, steps in found.items()
    }
    shares = {
        name: statistics.median(step.get(part, 0.0) / step[WHOLE] for step in steps)
        for name, steps in found.items()
    }
    return {
        "dtype": dtype,
        "part": part,
        "base_ms": medians["base"] * 1e3,
        "base_share": shares["base"],
        "ms": medians["adapters"] * 1e3,
        "share": shares["adapters"],
    }


async def _between(plan: Plan) -> list[Record]:
    """The worker's loop with as many streams as rows, seen by the device."""
    progress(f"    {NUM_ROWS} streams through the worker's loop")
    times: list[tuple[float, float]] = []

    def timed(device: Device, step: Step) -> object:
        begin = time.perf_counter()
        drawn = inner(device, step)
        if len(step.rows) == NUM_ROWS and all(len(row.token_ids) == 1 for row in step.rows):
            times.append((begin, time.perf_counter()))
        return drawn

    inner = Device.run
    Device.run = timed  # type: ignore[method-assign, assignment]
    try:
        folder = adapters.folder_of(plan)
        async with serving(plan, folder, max_num_seqs=NUM_ROWS, num_threads=1) as worker:
            await run(worker.stream, _jobs(tokens=8), _LIMIT_S)
            times.clear()
            tokens = _QUICK_ANSWER_TOKENS if plan.is_quick else _ANSWER_TOKENS
            await run(worker.stream, _jobs(tokens), _LIMIT_S)
    finally:
        Device.run = inner  # type: ignore[method-assign]
    inside = statistics.median(end - begin for begin, end in times)
    between = statistics.median(
        after - before for (_, before), (after, _) in itertools.pairwise(times)
    )
    return [
        {
            "steps": len(times),
            "inside_ms": inside * 1e3,
            "between_ms": between * 1e3,
            "share": between / (inside + between),
        }
    ]


def _jobs(tokens: int) -> list[list[Job]]:
    return [
        [
            Job(
                prompt=tuple(range(100 * index + 100, 100 * index + 116)),
                adapter=mixed_name(index),
                max_tokens=tokens,
                num_streams=NUM_ROWS,
            )
        ]
        for index in range(NUM_ROWS)
    ]


def _parts_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="profile",
        title=f"CPU time of a decode step of {NUM_ROWS} rows, context {CONTEXT}",
        columns=(
            Column(key="dtype", title="dtype"),
            Column(key="part", title="part"),
            Column(key="base_ms", title="base ms", form=".1f"),
            Column(key="base_share", title="of the step", form=".1%"),
            Column(key="ms", title=f"{NUM_ROWS} adapters, ranks 8 to 128, ms", form=".1f"),
            Column(key="share", title="of the step", form=".1%"),
        ),
        rows=tuple(rows),
        note="Medians over the rounds, so that shares add up to a hundred only nearly. In bfloat16 "
        "all layers are one compiled call as it is served; its parts give the same.",
    )


def _between_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="between",
        title=f"The worker's loop with {NUM_ROWS} streams of as many adapters, wall time",
        columns=(
            Column(key="steps", title="steps"),
            Column(key="inside_ms", title="in a step ms", form=".1f"),
            Column(key="between_ms", title="between two ms", form=".2f"),
            Column(key="share", title="of the time", form=".1%"),
        ),
        rows=tuple(rows),
        note="Between two steps: planning, handing over to the device's thread and back.",
    )
