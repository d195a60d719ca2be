"""`anole bench`: the benchmark of the source tree, which no installed package holds."""

import argparse
import sys
from pathlib import Path

from anole_shared.errors import ConfigurationError

_SOURCE = Path(__file__).parents[2]
_ABSENT = (
    "the benchmark is in the source tree only, and this Anole was installed without it: get the "
    "source, then `make bench` there (or install it with `pip install -e .` and repeat this)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own flags and words, where it is here."""
    if not _is_here():
        parser.description = f"Measure what Anole costs on this machine.\n\nNot here: {_ABSENT}"
        parser.prefix_chars = "\0"  # whatever flags are given, the answer is the same
        parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
        return
    _make_importable()
    from bench.options import DESCRIPTION, add_flags

    parser.description = DESCRIPTION
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, write; the exit status.

    Raises:
        ConfigurationError: there is no source tree.
    """
    if not _is_here():
        raise ConfigurationError(_ABSENT)
    from bench import command

    return command.run(arguments)


def _is_here() -> bool:
    return (_SOURCE / "bench" / "options.py").is_file()


def _make_importable() -> None:
    if str(_SOURCE) not in sys.path:
        sys.path.append(str(_SOURCE))
