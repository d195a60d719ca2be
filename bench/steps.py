"""What adapters cost a decode step: the ratio to the base model's own, beside its floor."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from anole_worker.adapter_files import AdapterFile
from anole_worker.core.adapter import Adapter
from bench import adapters, limits
from bench.adapters import Kind
from bench.hugging_face import PeftBatch
from bench.interleaving import Call, in_turns
from bench.rig import CONTEXT, Rig, clock, dtypes, kv_bytes, name_of, rigged, weight_bytes
from bench.section import Plan, progress
from bench.table import Column, Record, Table

_PEFT_ROUNDS = 5
_PEFT_ROWS = (8, 16)
_QUICK_ROWS = (16,)
_ROWS = (8, 16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSet:
    """Which adapters the rows of a step use."""

    name: str
    files: tuple[AdapterFile, ...]
    """By turns; each row has one of its own, in memory of its own."""
    is_shared: bool = False
    """All rows use one adapter instead."""
    aim: Callable[[int], float | None] = lambda _: None
    """The highest ratio that is fine, by the number of rows."""


def sets(plan: Plan, dtype: torch.dtype) -> list[AdapterSet]:
    """All that are measured with a base model of this type.

    Stored in bfloat16, but for copies in types that only a float32 model tells apart.
    """
    sixteen = adapters.read(plan, Kind("all", 16))
    found = [
        AdapterSet(
            name="attention, rank 16",
            files=(adapters.read(plan, Kind("attention", 16)),),
            aim=lambda _: 1.10,
        ),
        AdapterSet(name="all linear, rank 16", files=(sixteen,)),
        AdapterSet(
            name="all linear, ranks 8 to 128",
            files=adapters.read_mixed(plan),
            aim=lambda num_rows: 1.35 if num_rows == 16 else None,
        ),
        *(
            AdapterSet(
                name=f"all linear, ranks 8 to 128, stored in {stored}",
                files=adapters.read_mixed(plan, stored),
                aim=lambda num_rows: 1.35 if num_rows == 16 else None,
            )
            for stored in (("float16", "float32") if dtype == torch.float32 else ())
        ),
        AdapterSet(name="trained, of examples/", files=adapters.read_trained(plan)),
        AdapterSet(name="one for all rows, all linear, rank 16", files=(sixteen,), is_shared=True),
    ]
    return [one for one in found if one.files]


def measure(plan: Plan) -> list[Table]:
    """Anole against its own base model, then against transformers and PEFT."""
    own: list[Record] = []
    others: list[Record] = []
    for dtype in dtypes(plan):
        with rigged(plan, dtype) as rig:
            rows = _QUICK_ROWS if plan.is_quick else _ROWS
            rig.fill(max(rows))
            own += _against_base(plan, rig, rows)
            others += _against_peft(plan, rig, _QUICK_ROWS if plan.is_quick else _PEFT_ROWS)
        gc.collect()
    return [_own_table(own), _peft_table(others)]


def _against_base(plan: Plan, rig: Rig, rows: Sequence[int]) -> Iterator[Record]:
    known = sets(plan, rig.dtype)
    loaded = {one.name: _load(rig, one, max(rows)) for one in known}
    for num_rows in rows:
        progress(f"    {name_of(rig.dtype)}, {num_rows} rows")
        calls = {"base": _decode(rig, [None] * num_rows)}
        for name, found in loaded.items():
            calls[name] = _decode(rig, found[:num_rows])
        times = in_turns(calls, plan.rounds, clock=clock(plan))
        base = times.pop("base")
        for one in known:
            distinct = set(loaded[one.name][:num_rows])
            yield {
                "dtype": name_of(rig.dtype),
                "rows": num_rows,
                "adapters": one.name,
                "distinct": len(distinct),
                "base_ms": base.median_s * 1e3,
                "ms": times[one.name].median_s * 1e3,
                "ratio": times[one.name].ratio_to(base),
                "spread": times[one.name].spread,
                "aim": one.aim(num_rows),
                **_floors(rig, num_rows, distinct, base.median_s),
            }
    for found in loaded.values():
        rig.drop(list(dict.fromkeys(found)))


def _load(rig: Rig, one: AdapterSet, count: int) -> list[Adapter]:
    """The adapter of each row."""
    if one.is_shared:
        return [rig.load(one.files[0])] * count
    return rig.load_distinct(one.files, count)


def _decode(rig: Rig, rows: Sequence[Adapter | None]) -> Call:
    return partial(rig.device.run, rig.decode(rows))


def _floors(
    rig: Rig, num_rows: int, distinct: Iterable[Adapter], base_s: float
) -> Mapping[str, float]:
    """What reading alone takes: as bytes to bytes, in time, and on top of the measured base."""
    base = weight_bytes(rig.shape, rig.dtype)
    extra = sum(adapter.num_bytes for adapter in distinct)
    context = num_rows * CONTEXT * kv_bytes(rig.shape, rig.dtype)
    bytes_per_s = limits.read_bytes_per_s(device=rig.target)
    return {
        "bytes": 1 + extra / base,
        "floor_ms": (base + extra + context) / bytes_per_s * 1e3,
        "floor": 1 + extra / bytes_per_s / base_s,
    }


def _against_peft(plan: Plan, rig: Rig, rows: Sequence[int]) -> Iterator[Record]:
    """Both sides' base models and mixed batches in one round."""
    base = PeftBatch(plan.model, rig.shape, rig.dtype, plan.device)
    for one in sets(plan, rig.dtype)[:3:2]:
        mixed = PeftBatch(plan.model, rig.shape, rig.dtype, plan.device)
        loaded = _load(rig, one, max(rows))
        progress(f"    {name_of(rig.dtype)}: PEFT loads {max(rows)} adapters ({one.name})")
        for index, adapter in enumerate(loaded):
            mixed.add(one.files[index % len(one.files)], _peft_name(adapter))
        mixed.settle()
        for num_rows in rows:
            names = [_peft_name(adapter) for adapter in loaded[:num_rows]]
            times = in_turns(
                {
                    "own base": _decode(rig, [None] * num_rows),
                    "own": _decode(rig, loaded[:num_rows]),
                    "transformers": base.decode(num_rows, CONTEXT),
                    "peft": mixed.decode(num_rows, CONTEXT, names),
                },
                min(plan.rounds, _PEFT_ROUNDS),
                clock=clock(plan),
            )
            yield {
                "dtype": name_of(rig.dtype),
                "rows": num_rows,
                "adapters": one.name,
                "base_ms": times["own base"].median_s * 1e3,
                "ms": times["own"].median_s * 1e3,
                "transformers_ms": times["transformers"].median_s * 1e3,
                "peft_ms": times["peft"].median_s * 1e3,
                "base_faster": times["transformers"].ratio_to(times["own base"]),
                "faster": times["peft"].ratio_to(times["own"]),
                "peft_ratio": times["peft"].ratio_to(times["transformers"]),
            }
        rig.drop(loaded)
        del mixed
        gc.collect()


def _peft_name(adapter: Adapter) -> str:
    return adapter.adapter_id.replace(".", "_")


def _own_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="steps",
        title=f"Decode step, context {CONTEXT}: with adapters against the base model alone",
        columns=(
            Column(key="dtype", title="dtype"),
            Column(key="rows", title="rows"),
            Column(key="adapters", title="adapters"),
            Column(key="distinct", title="distinct"),
            Column(key="base_ms", title="base ms", form=".1f"),
            Column(key="ms", title="with adapters ms", form=".1f"),
            Column(key="floor_ms", title="floor ms", form=".1f"),
            Column(key="ratio", title="ratio", form=".2f"),
            Column(key="floor", title="if only read", form=".2f"),
            Column(key="bytes", title="of bytes", form=".2f"),
            Column(key="aim", title="aim", form=".2f"),
            Column(key="spread", title="spread", form=".0%"),
        ),
        rows=tuple(rows),
        note=(
            "Ratio: the step with adapters to the base model's in the same round, median over the "
            "rounds. If only read: what it would be if the adapters' bytes were read at the "
            "bandwidth of one core on top of the base model's step, and nothing computed. Of "
            "bytes: the weights and the adapters to the weights, the same for a base model's step "
            "that itself does nothing but read. Floor ms: all these bytes and the context's keys "
            "and values at that bandwidth. Spread: between the quartiles of the rounds."
        ),
    )


def _peft_table(rows: Sequence[Record]) -> Table:
    return Table(
        name="steps-peft",
        title="The same step by transformers, and by PEFT with adapter_names",
        columns=(
            Column(key="dtype", title="dtype"),
            Column(key="rows", title="rows"),
            Column(key="adapters", title="adapters, all distinct"),
            Column(key="base_ms", title="base ms", form=".1f"),
            Column(key="transformers_ms", title="transformers ms", form=".1f"),
            Column(key="base_faster", title="faster", form=".2f", unit="x"),
            Column(key="ms", title="with adapters ms", form=".1f"),
            Column(key="peft_ms", title="PEFT ms", form=".1f"),
            Column(key="faster", title="faster", form=".2f", unit="x"),
            Column(key="peft_ratio", title="PEFT's ratio to transformers", form=".2f"),
        ),
        rows=tuple(rows),
    )
