"""Runs sections one after the other, and keeps what they found."""

import argparse
import logging
import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from anole_shared.settings import CommonSettings, load
from bench import machine
from bench.options import QUICK_ROUNDS, ROUNDS
from bench.section import SECTIONS, Plan, Section, progress

RESULTS = Path(__file__).with_name("results")
NOWHERE = Path("-")


def run(given: argparse.Namespace) -> int:
    """Measure, print the tables, write the file; the exit status."""
    # A SIGTERM ends the servers that were started, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What the services have to say of every region and request would drown the progress.
    logging.getLogger().setLevel(logging.WARNING)
    # It would say for each section what the result says of the machine.
    logging.getLogger("anole_memd").setLevel(logging.ERROR)
    began = datetime.now(UTC)
    plan = _plan(given)
    out = _out(given, began)
    sections = [SECTIONS[name] for name in given.sections or SECTIONS]
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "commit": machine.commit(),
        "began": began.isoformat(timespec="seconds"),
        "rounds": plan.rounds,
        "threads": 1,
        "quick": plan.is_quick,
        "device": _device_name(plan),
        "model": plan.model.name,
        "sections": {},
    }
    for number, section in enumerate(sections, start=1):
        progress(f"[{number}/{len(sections)}] {section.name}: {section.what}")
        result["sections"][section.name] = _measured(section, plan)
        if out is not None:
            # Each time: a long run that is interrupted has not been for nothing.
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    if out is not None:
        progress(f"written to {out}")
    return 0


def _plan(given: argparse.Namespace) -> Plan:
    from anole_cli.models import model_dir

    common = load(CommonSettings)
    return Plan(
        model=model_dir(common),
        work=common.cache_dir / "bench",
        rounds=given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        is_quick=given.quick,
        device=given.device,
    )


def _device_name(plan: Plan) -> str:
    if not plan.is_on_gpu:
        return plan.device
    import torch

    return torch.cuda.get_device_name(plan.device)


def _out(given: argparse.Namespace, began: datetime) -> Path | None:
    if given.out is not None:
        return None if given.out == NOWHERE else Path(given.out)
    if given.quick or given.sections:
        return None
    name = f"{began:%Y-%m-%d}-{machine.name_of(machine.describe())}.json"
    return RESULTS / name


def _measured(section: Section, plan: Plan) -> dict[str, Any]:
    """The section's tables, printed too, and how busy the machine was meanwhile."""
    plan = replace(plan, kept={})
    before, begin = os.getloadavg()[0], time.monotonic()
    tables = section.measure(plan)
    seconds = time.monotonic() - begin
    for table in tables:
        print(f"{table.markdown()}\n", flush=True)
    progress(f"    {seconds:.0f} s")
    return {
        "tables": [table.to_json() for table in tables],
        "seconds": round(seconds, 1),
        "load_average": [round(before, 2), round(os.getloadavg()[0], 2)],
        **plan.kept,
    }
