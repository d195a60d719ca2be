"""What Python's search for garbage leaves out, and when it stays away."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loaded_set_aside() -> Iterator[None]:
    """Leave out all that is there at the beginning: it stays for as long as the worker does.

    One look through everything takes 0.2 s with torch's and transformers' 400,000 objects, now and
    then, and is a gap in every stream. What comes later is looked through as before.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def uncollected() -> Iterator[None]:
    """Search before, and not meanwhile: for what must not be met by anything's end."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
