"""How the CPU's loops are compiled by numba, and where their code is kept."""

import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core import config

_FOLDER = Path(__file__).parent
_SOURCES = ("cpu_*.py", "llvm_vectors.py", "compiling.py", "../model_shape.py")
_njit = njit(nogil=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy", cache=True)


def _digest() -> str:
    digest = sha256(numba.__version__.encode())
    for pattern in _SOURCES:
        for path in sorted(_FOLDER.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def place(given: str, beside: Path) -> Path:
    """Where the code of these very loops is kept; that of earlier ones beside them is removed.

    numba looks whether the file of a loop has changed, but not at the loops that it calls.

    Args:
        given: the folder that the user chose for numba's code, if any.
        beside: the folder of the loops' own files.
    """
    own = f"numba-{_digest()}"
    if given:
        return Path(given) / own
    if not os.access(beside, os.W_OK):
        return Path.home() / ".cache" / "anole" / own
    for earlier in (beside / "__pycache__").glob("numba-*"):
        if earlier.name != own:
            shutil.rmtree(earlier, ignore_errors=True)
    return beside / "__pycache__" / own


PLACE = str(place(config.CACHE_DIR, _FOLDER))
IS_NEW = not Path(PLACE).exists()
"""Whether nothing of it has been compiled yet."""


def compiled(function: Callable[..., Any]) -> Any:  # noqa: ANN401 - numba's dispatcher
    """Compile a loop for the types that it is called with: without the GIL, once for all.

    Sums may be added up in another order, and what is divided by zero is infinite.
    """
    before, config.CACHE_DIR = config.CACHE_DIR, PLACE
    try:
        return _njit(function)
    finally:
        config.CACHE_DIR = before
