# ruff: noqa: INP001 (a script beside the Dockerfiles, not a package)
"""Print what some of pyproject.toml's extras need, Anole itself left out, a line each.

    python requirements.py EXTRA...

So an image can install what it needs in a layer that a change of Anole's own code leaves alone.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> Iterator[str]:
    """The project's own requirements, then those of the extras and of the extras they name."""
    yield from project["dependencies"]
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            if own := re.fullmatch(rf"{project['name']}\[(.+)\]", line):
                yield from requirements(project, own[1].split(","))
            else:
                yield line


if __name__ == "__main__":
    declared = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    wanted = dict.fromkeys(requirements(declared, sys.argv[1:]))
    sys.stdout.writelines(f"{line}\n" for line in wanted)
