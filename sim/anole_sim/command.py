"""`anole sim`: what the scheduler would do with a day's requests, in seconds and without a GPU."""

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import orjson

from anole_shared.errors import ConfigurationError
from anole_shared.settings import load
from anole_sim import golden, paper, plots, profile_file
from anole_sim.faults import Faults
from anole_sim.predictors import PREDICTORS
from anole_sim.profile import LINKS, PROFILES
from anole_sim.profile_file import Fitted
from anole_sim.report import SUMMARY, SUMMARY_NOTE, Cell, Table, golden_table, summary_row
from anole_sim.settings import SimSettings
from anole_sim.simulate import Case, simulate
from anole_sim.systems import SYSTEMS
from anole_sim.traces import FILES
from anole_sim.workload import Plan

DESCRIPTION = """\
Simulate the scheduler on production traces, in virtual time: the code that ships decides, a model
of the workers says what each step would take.

  anole sim                                   S-LoRA, Chameleon and Anole at three loads (a minute)
  anole sim --rate 9 --system slora anole --link fit        one load, two systems, a slow link
  anole sim --trace mytrace.csv --rate 0 --scale 1          a trace's own arrival times
  anole sim --workers 8 --rate 60 --popularity zipf         a cluster
  anole sim --profile fit.json --rate 0.5     this machine, of anole bench fit --out fit.json
  anole sim --faults                          lose, delay and double messages, let workers die
  anole sim --golden                          check against S-LoRA's published figures
  anole sim --paper                           every figure of Chameleon's, and ours

Traces do not ship: give their folder with --traces or ANOLE_TRACES (docs/simulation.md says
where to get them). Without it lengths are drawn from lognormals fitted to each trace.
Same seed, same bytes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    parser.description = DESCRIPTION
    systems = "; ".join(f"{one.name}: {one.what}" for one in SYSTEMS.values())
    parser.add_argument(
        "--system", nargs="+", choices=SYSTEMS, metavar="NAME", help=f"what is compared. {systems}"
    )
    parser.add_argument("--rate", nargs="+", type=float, help="requests a second; 0: the trace's")
    _add_workload(parser)
    _add_machine(parser)
    parser.add_argument("--faults", action="store_true", help="let messages and workers fail")
    parser.add_argument("--check", action="store_true", help="assert every invariant all the time")
    parser.add_argument("--golden", action="store_true", help="S-LoRA's published runs, and ours")
    parser.add_argument(
        "--paper", nargs="*", choices=[*paper.SECTIONS, []], metavar="SECTION",
        help=f"figures beside Chameleon's: all, or some of {', '.join(paper.SECTIONS)}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="of --paper (%(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="processes of --paper (%(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw P99 TTFT by load (SVG)")


def _add_workload(parser: argparse.ArgumentParser) -> None:
    given = Plan()
    group = parser.add_argument_group("what is asked for")
    group.add_argument(
        "--trace", default=given.trace, help=f"{', '.join(FILES)}, or a file (%(default)s)"
    )
    group.add_argument("--traces", type=Path, metavar="DIR", help="folder of the known traces")
    group.add_argument("--scale", type=float, default=1 / 6, help="of lengths (default 1/6)")
    group.add_argument("--duration", type=float, default=300.0, help="seconds (%(default)s)")
    group.add_argument("--cv", type=float, default=1.0, help="of arrivals: 1 Poisson, 4 bursts")
    group.add_argument("--adapters", type=int, default=given.num_adapters, help="%(default)s")
    group.add_argument(
        "--popularity", default=given.popularity,
        help="uniform, zipf, u-p, p-p, gentd26, gentd26-shuffled (%(default)s)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="%(default)s")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what serves it")
    group.add_argument(
        "--profile", default="a40-7b",
        help=f"{', '.join(PROFILES)}, or a file of `anole bench fit --out FILE` (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--link", choices=LINKS, help="adapters' way to the device (a file's own, else pcie)"
    )
    group.add_argument("--workers", type=int, default=1, help="%(default)s")
    group.add_argument("--slots", type=int, help="tokens of memory, instead of the profile's")
    group.add_argument(
        "--predictor", choices=[*PREDICTORS, "online", "none"], default="perfect",
        help="of output lengths; online: the scheduler's own (%(default)s)",
    )  # fmt: skip


def run(given: argparse.Namespace) -> int:
    """Simulate, print, write; the exit status."""
    folder = given.traces or load(SimSettings).traces
    if given.golden:
        return _show([golden_table([golden.check(one) for one in golden.PUBLISHED])], given)
    if given.paper is not None:
        study = paper.Study(folder=folder, seeds=given.seeds, tell=_progress)
        return _show(paper.run(study, given.paper, given.jobs), given)
    return _show([_compare(given, folder)], given)


def _compare(given: argparse.Namespace, folder: Path | None) -> Table:
    rates = given.rate or [6.0, 9.0, 12.0]
    names = given.system or ["slora", "chameleon", "anole"]
    if min(rates) < 0 or given.workers < 1 or given.duration <= 0:
        raise ConfigurationError("rates are at least 0, workers 1, and a run takes some time")
    machine = profile_file.find(given.profile, given.link)
    if given.slots:
        machine = replace(machine, profile=machine.profile.with_slots(given.slots))
    rows: list[tuple[Cell, ...]] = []
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    slo = 0.0
    for rate in rates:
        for name in names:
            case = _case(given, _plan(given, folder, rate), name, machine)
            found = simulate(case)
            rows.append(summary_row(name, rate, case.link.name, found))
            lines[name].append((rate, found.ttft_p99))
            slo = found.ttft_slo
    if given.plot:
        plots.draw(given.plot, {given.trace: lines}, y="TTFT P99, s", slo=slo)
    title = f"{given.trace} on {given.workers} x {machine.profile.name}, {given.duration:g} s"
    return Table(name="study", title=title, columns=SUMMARY, rows=tuple(rows), note=SUMMARY_NOTE)


def _case(given: argparse.Namespace, plan: Plan, name: str, machine: Fitted) -> Case:
    return Case(
        system=replace(SYSTEMS[name], predictor=given.predictor),
        plan=plan,
        profile=machine.profile,
        link=machine.link,
        num_workers=given.workers,
        faults=Faults(seed=given.seed) if given.faults else None,
        is_checked=given.check,
    )


def _plan(given: argparse.Namespace, folder: Path | None, rate: float) -> Plan:
    return Plan(
        trace=given.trace,
        folder=folder,
        scale=given.scale,
        rate=rate,
        duration_s=given.duration,
        cv=given.cv,
        num_adapters=given.adapters,
        popularity=given.popularity,
        seed=given.seed,
    )


def _show(tables: Iterable[Table], given: argparse.Namespace) -> int:
    found: list[Table] = []
    for table in tables:
        print(f"{table.markdown()}\n", flush=True)
        found.append(table)
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            data = {"tables": [one.to_json() for one in found]}
            given.json.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
    return 0


def _progress(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
