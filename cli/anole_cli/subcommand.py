"""How each subcommand is made, those of `anole memd` as well."""

import argparse
from collections.abc import Callable
from typing import TypeAlias

Run = Callable[[argparse.Namespace], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def add(
    commands: Commands, name: str, what: str, run: Run, more: str = ""
) -> argparse.ArgumentParser:
    """A subcommand that runs so; what: for the list, more: for its own help besides."""
    parser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.\n{more}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
