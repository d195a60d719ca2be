"""`anole adapters`: what is in an adapter folder, and what is wrong with what."""

import argparse
import sys
from pathlib import Path

from anole_cli.flags import read
from anole_cli.models import model_dir
from anole_shared.errors import ConfigurationError
from anole_shared.settings import CommonSettings
from anole_shared.units import MiB, region_bytes
from anole_worker import adapter_files, model_shape

_ITEMSIZE = 2


def run(arguments: argparse.Namespace) -> int:
    """Print a table of the folder's adapters; 1 if any is refused."""
    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ConfigurationError(f"no folder {folder}: give the folder that holds the adapters")
    shape = model_shape.read(model_dir(read(CommonSettings, arguments)))
    files, refused = adapter_files.discover(folder, shape)
    print(f"{'adapter':<24} {'rank':>4} {'bfloat16':>10}  targets")
    for file in files:
        size = f"{region_bytes(file.packed_bytes(_ITEMSIZE)) / MiB:.1f} MiB"
        targets = ", ".join(module.removesuffix("_proj") for module in file.target_modules)
        print(f"{file.adapter_id:<24} {file.rank:>4} {size:>10}  {targets}")
    for name, reason in refused:
        print(f"{name:<24} refused: {reason}", file=sys.stderr)
    if not files and not refused:
        print(f"(none: an adapter is a folder in {folder} with an adapter_config.json)")
    return 1 if refused else 0
