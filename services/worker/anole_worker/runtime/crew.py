"""Threads that share a step on a CPU: each runs some of its tokens through all layers.

torch's own threads share every product instead. They meet some hundred times a step, and spin until
the last one is there: where a processor is also wanted by others, steps take several times as long.
These meet once a layer, if at all, and sleep: steps become 1.2 to 1.8 times as fast by two of them,
and short ones up to 1.5 times as slow where one of the processors has other work (ADR 21).
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from threading import Lock
from typing import TypeVar

import torch

from anole_worker.core.step import Row, Step

_LEAST_CUT = 4
"""Tokens that a prompt is cut for: so few of twelve are still worth a thread of their own."""
_MOST_THREADS = 4
"""Unless told otherwise: between two products, a thread keeps the others from Python."""

Result = TypeVar("Result")


def default_threads(torch_threads: int) -> int:
    """One for each processor that this process may use, unless torch has several of its own."""
    if torch_threads > 1:
        return 1
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


class Crew:
    """Threads that sleep until there is something to share."""

    def __init__(self, num_threads: int) -> None:
        """num_threads: with the one that calls."""
        self._others = ThreadPoolExecutor(
            max(1, num_threads - 1),
            thread_name_prefix="crew",
            initializer=torch.set_num_threads,
            initargs=(1,),
        )

    def run(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What the calls give, made at once, the first one by the caller's own thread.

        Returns when all have ended; raises what the first one that failed did.
        """
        others = [self._others.submit(_inferring, call) for call in calls[1:]]
        try:
            first = _inferring(calls[0])
        finally:
            wait(others)
        return [first, *(other.result() for other in others)]


@torch.inference_mode()
def _inferring(call: Callable[[], Result]) -> Result:
    return call()  # the mode is a thread's own


class Turns:
    """Has the parts of a step wait for each other's keys and values, layer by layer.

    A part's tokens attend to those of a prompt's other parts, and to whoever's blocks they share.
    """

    def __init__(self, num_parts: int, num_layers: int) -> None:
        self._locks = [[_closed() for _ in range(num_layers)] for _ in range(num_parts)]
        self._num_written = [0] * num_parts

    def written(self, part: int, layer: int) -> None:
        """This part has written the layer's; returns when all parts have."""
        self._locks[part][layer].release()
        self._num_written[part] = layer + 1
        for locks in self._locks:
            with locks[layer]:
                pass

    def give_up(self, part: int) -> None:
        """This part has failed: let the others go on, with whatever they find."""
        for lock in self._locks[part][self._num_written[part] :]:
            lock.release()


def _closed() -> Lock:
    lock = Lock()
    lock.acquire()
    return lock


def shares(step: Step, num_threads: int, least: int) -> list[Step]:
    """The step, in at most so many parts of about as many tokens, in its own order.

    A prompt may be cut. Its first piece draws nothing then. least: tokens that a part pays with.
    """
    num_tokens = sum(len(row.token_ids) for row in step.rows)
    num_parts = max(1, min(num_threads, num_tokens // least))
    parts: list[list[Row]] = [[] for _ in range(num_parts)]
    begin = 0
    for row in step.rows:
        for piece in _pieces(row, begin, num_tokens / num_parts):
            size = len(piece.token_ids)
            parts[(2 * begin + size) * num_parts // (2 * num_tokens)].append(piece)  # its middle's
            begin += size
    return [Step(rows=tuple(rows)) for rows in parts if rows]


def do_meet(parts: Sequence[Step], block_size: int) -> bool:
    """Whether some part's tokens may attend to keys and values that another part writes."""
    for part in parts:
        written = {
            block
            for row in part.rows
            for block in row.block_table[
                row.start // block_size : (row.start + len(row.token_ids) - 1) // block_size + 1
            ]
        }
        others = (row for other in parts if other is not part for row in other.rows)
        if any(not written.isdisjoint(row.block_table) for row in others):
            return True
    return False


def _pieces(row: Row, begin: int, share: float) -> list[Row]:
    """The row, cut where a share ends, with so many tokens of the step before it."""
    pieces, end = [], begin + len(row.token_ids)
    index = int(begin // share) + 1
    while end - (bound := round(index * share)) >= _LEAST_CUT:
        if bound - begin >= _LEAST_CUT:
            head, row = _cut(row, bound - begin)
            pieces.append(head)
            begin = bound
        index += 1
    return [*pieces, row]


def _cut(row: Row, count: int) -> tuple[Row, Row]:
    head = replace(row, token_ids=row.token_ids[:count], sampling=None, score=None)
    return head, replace(row, token_ids=row.token_ids[count:], start=row.start + count)
