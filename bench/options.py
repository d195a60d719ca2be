"""The benchmark's flags: for `python -m bench` and `anole bench` alike. Imports nothing heavy."""

import argparse
import re
from pathlib import Path

from bench.section import SECTIONS

ROUNDS, QUICK_ROUNDS = 15, 5

DESCRIPTION = f"""\
Measure what Anole costs on this machine, each figure beside the physical limit.

Both sides of every comparison run in this process tree, on one thread, in turns: a busy machine
slows them alike, and the figures are medians over the rounds of CPU time (wall time where a clock
on a wall is meant). All of it takes about a quarter of an hour, --quick about four minutes.

  anole bench                        all sections; writes bench/results/<date>-<machine>.json
  anole bench steps loads            two of them, printed only
  anole bench --quick                a first look, printed only
  anole bench fit --out FILE         this machine as a profile: then anole sim --profile FILE
  python -m bench.report FILE        the tables of docs/performance.md out of that file

sections:
{chr(10).join(f"  {section.name:<10} {section.what}" for section in SECTIONS.values())}

Other servers on the same machine (vLLM, PEFT, llama.cpp): python -m bench.peers --help
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that the benchmark can be told."""
    parser.add_argument(
        "sections",
        nargs="*",
        type=_section,
        metavar="section",
        help="which ones, in this order; none: all",
    )
    parser.add_argument(
        "--rounds",
        type=_at_least_one,
        help=f"how often each thing is measured ({ROUNDS}; with --quick {QUICK_ROUNDS})",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the results to this file, as JSON; - for nowhere (a file in bench/results if "
        "all sections are run without --quick, else nowhere)",
    )
    parser.add_argument(
        "--device",
        type=_device,
        default="cpu",
        help="what the worker runs on: cpu (the default), cuda or cuda:N. On a GPU all times are "
        "wall time; it is for steps, prefill and loads",
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases, sizes and rounds")


def _section(name: str) -> str:
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"no section {name!r}; there are {', '.join(SECTIONS)}")
    return name


def _device(name: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise argparse.ArgumentTypeError("must be cpu, cuda or cuda:N")
    return name


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number
