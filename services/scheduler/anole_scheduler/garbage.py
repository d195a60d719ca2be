"""How often Python looks through everything that lives for garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_RARELY = 1000
"""Looks at what is young between two at everything; Python's default is 10."""


@contextmanager
def looked_for_rarely() -> Iterator[None]:
    """Let a long line not be stopped for: what waits is no garbage, and a look at it takes long.

    With 100,000 requests waiting, one look at the core alone takes 60 ms, and comes whenever the
    line has grown by a quarter. Without them the longest event took 4 ms instead of 53, and all of
    them 4 % less time. What is young is looked through as before, which finds nearly all there is.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], _RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
