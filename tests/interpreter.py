"""Triton's interpreter, in a process of its own, where there is no GPU to run kernels on."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import pytest


@contextmanager
def interpreting() -> Iterator[ProcessPoolExecutor]:
    """A process in which kernels are interpreted.

    Triton decides when it is imported whether it interprets, and others here import it.
    """
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes,
    ):
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield processes
