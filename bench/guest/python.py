"""A Python for the guest: the one that runs this, with just the modules that are asked for."""

import json
import py_compile
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.guest.initramfs import Files

_TELL = """
import json, sys
for name in sys.argv[1:]:
    __import__(name)
files = {m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
print(json.dumps(sorted(files)))
"""


def files(modules: Sequence[str], path: Sequence[Path]) -> Files:
    """The interpreter and all that these modules import, each where it lies on this machine.

    Modules are compiled here, since a guest takes its time for that; path: where to look for them.
    """
    interpreter = Path(sys.executable).resolve()
    told = subprocess.run(  # noqa: S603 - no part of it comes from outside
        [str(interpreter), "-S", "-c", _TELL, *modules],
        env={"PYTHONPATH": ":".join(map(str, path))},
        capture_output=True,
        check=True,
    ).stdout
    found: Files = {}
    programs = [interpreter]
    for source in map(Path, json.loads(told)):
        if source.suffix == ".py":
            found[_inside(source.with_suffix(".pyc"))] = (stat.S_IFREG | 0o644, _compiled(source))
        else:
            programs.append(source)
    for program in programs:
        found[_inside(program)] = (stat.S_IFREG | 0o755, program.read_bytes())
        for library in _libraries(program):
            found[f"lib/{library.name}"] = (stat.S_IFREG | 0o755, library.read_bytes())
    for name in list(found):
        for folder in Path(name).parents:
            found.setdefault(str(folder), (stat.S_IFDIR | 0o755, b""))
    found.pop(".", None)
    return found


def command() -> str:
    """The start of a line of shell in the guest that runs this Python."""
    return f"LD_LIBRARY_PATH=/lib PYTHONHOME={sys.base_prefix} {Path(sys.executable).resolve()} -S"


def _inside(path: Path) -> str:
    return str(path).lstrip("/")


def _compiled(source: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "module.pyc"
        py_compile.compile(str(source), cfile=str(compiled), doraise=True)
        return compiled.read_bytes()


def _libraries(program: Path) -> list[Path]:
    told = subprocess.run(  # noqa: S603 - no part of it comes from outside
        ["ldd", str(program)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    return [Path(path) for path in re.findall(r"=> (/\S+) ", told)]
