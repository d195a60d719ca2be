"""A Python for the guest: the one that runs this, with just the modules that are asked for."""

import json
import py_compile
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from bench.guest.initramfs import Files

_TELL = """
import importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    if name.endswith("__main__"):
        found[importlib.util.find_spec(name).origin] = None
    else:
        __import__(name)
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        found[module.__file__] = getattr(module, "__cached__", None)
print(json.dumps(found))
"""


def files(modules: Sequence[str], path: Sequence[Path]) -> Files:
    """The interpreter and all that these modules import, each where it lies on this machine.

    Modules are compiled here, since a guest takes its time for that; those that are called __main__
    come along without being run.

    Args:
        modules: their names.
        path: where to look for them.
    """
    interpreter = Path(sys.executable).resolve()
    told = subprocess.run(  # noqa: S603 - no part of it comes from outside
        [str(interpreter), "-S", "-c", _TELL, "site", *modules],
        env={"PYTHONPATH": _joined(path)},
        capture_output=True,
        check=True,
    ).stdout
    found: Files = {}
    programs = [interpreter]
    for name, cached in json.loads(told).items():
        source = Path(name)
        if source.suffix == ".py":
            code = _compiled(source, Path(cached or source))
            found[inside(source.with_suffix(".pyc"))] = (stat.S_IFREG | 0o644, code)
        else:
            programs.append(source)
    for program in programs:
        found[inside(program)] = (stat.S_IFREG | 0o755, program.read_bytes())
        for library in _libraries(program):
            found[f"lib/{library.name}"] = (stat.S_IFREG | 0o755, library.read_bytes())
    return with_folders(found)


def metadata(distributions: Sequence[str]) -> Files:
    """What these say of themselves, for libraries that find their parts by it."""
    about = (
        Path(str(file.locate()))
        for name in distributions
        for file in distribution(name).files or ()
        if file.parent.suffix == ".dist-info"
    )
    return with_folders({inside(path): (stat.S_IFREG | 0o644, path.read_bytes()) for path in about})


def with_folders(found: Files) -> Files:
    """The files, and the folders that they lie in."""
    folders = {str(folder) for name in found for folder in Path(name).parents} - {"."}
    return dict.fromkeys(folders, (stat.S_IFDIR | 0o755, b"")) | found


def command(path: Sequence[Path]) -> str:
    """The start of a line of shell in the guest that runs this Python; path: as for files().

    What it starts with sys.executable is another one.
    """
    variables = {
        "LD_LIBRARY_PATH": "/lib",
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": _joined(path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    set_to = " ".join(f"{name}={value}" for name, value in variables.items())
    return f"{set_to} {Path(sys.executable).resolve()}"


def inside(path: Path) -> str:
    """What a path of this machine is called in the archive, so that it is the same in the guest."""
    return str(path).lstrip("/")


def _joined(path: Sequence[Path]) -> str:
    return ":".join(map(str, path))


def _compiled(source: Path, cached: Path) -> bytes:
    """The import above has compiled it, where its folder is writable."""
    if cached.suffix == ".pyc" and cached.exists():
        return cached.read_bytes()
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
