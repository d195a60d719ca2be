"""The constants of a worker's profile out of timed steps and loads: least squares, none below 0.

Residuals are relative to what was measured, so that a short step counts as much as a long one.
The linear layers are a floor and a slope between each two of KNOTS, none of them negative: more
tokens are never faster. What every step costs and what each row does is told apart by steps run
through the worker's own loop, beside the same steps run on the device alone.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from anole_shared.errors import AnoleError
from anole_sim.metrics import quantile
from anole_sim.profile import Link, Profile

KNOTS = (1, 4, 16, 32, 64, 256)
HELD_OUT = 3
"""One of so many points is not fitted."""
_TOLERANCE = 1e-12
_COLUMNS = (
    "floor", *(f"slope {begin}" for begin in KNOTS[:-1]), "host_s", "row_s", "loop_row_s",
    "context_s", "attention_s", "lora_step_s", "lora_rank_s", "lora_token_s", "lora_token_rank_s",
)  # fmt: skip

Point = TypeVar("Point")
Matrix = npt.NDArray[np.float64]


class FitFailed(AnoleError):
    """The measured figures do not tell what was asked of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a timed step had in it, in the words of Profile.mixed_s."""

    rows: int = 0
    context: int = 0
    ranks: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    squares: int = 0
    lora_tokens: int = 0
    token_ranks: int = 0
    is_in_loop: bool = False
    """Run by the worker's loop: planning and telling its tokens is in its time."""

    def columns(self) -> list[float]:
        """What each constant is multiplied by."""
        tokens = self.rows + self.prompt_tokens
        rows = self.rows + self.prompts
        slopes = [
            max(0, (tokens if end == KNOTS[-1] else min(tokens, end)) - begin)
            for begin, end in pairwise(KNOTS)
        ]
        return [
            1, *slopes, self.is_in_loop, rows, rows * self.is_in_loop, self.context, self.squares,
            bool(self.ranks or self.lora_tokens), self.ranks, self.lora_tokens, self.token_ranks,
        ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timed:
    """A step, and how long it took."""

    kind: str
    step: Step
    seconds: float


@dataclass(frozen=True, slots=True)
class TimedLoad:
    """An adapter's load."""

    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What of a profile is known without a fit."""

    kv_bytes: int
    rank_bytes: int
    memory_bytes: int
    max_num_seqs: int


class StepFit:
    """Constants by which the steps come out as they were measured."""

    def __init__(self, timed: Sequence[Timed]) -> None:
        rows = np.array([one.step.columns() for one in timed], dtype=np.float64)
        weights = 1 / np.array([one.seconds for one in timed])
        found = non_negative(rows * weights[:, None], np.ones(len(timed)))
        self.constants = dict(zip(_COLUMNS, found.tolist(), strict=True))

    def seconds(self, step: Step) -> float:
        """What the step would take."""
        pairs = zip(self.constants.values(), step.columns(), strict=True)
        return math.fsum(constant * times for constant, times in pairs)

    def profile(self, name: str, source: str, limits: Limits) -> Profile:
        """For the simulator, whose steps all run in a worker's loop."""
        known = self.constants
        seconds = [known["floor"]]
        for begin, end in pairwise(KNOTS):
            seconds.append(seconds[-1] + known[f"slope {begin}"] * (end - begin))
        return Profile(
            name=name,
            source=source,
            linear=tuple(zip(KNOTS, seconds, strict=True)),
            host_s=known["host_s"],
            row_s=known["row_s"] + known["loop_row_s"],
            # The output layer is in the linear layers' floor, and in each row.
            head_s=0.0,
            context_s=known["context_s"],
            attention_s=known["attention_s"],
            lora_step_s=known["lora_step_s"],
            lora_rank_s=known["lora_rank_s"],
            lora_token_s=known["lora_token_s"],
            lora_token_rank_s=known["lora_token_rank_s"],
            kv_bytes=limits.kv_bytes,
            rank_bytes=limits.rank_bytes,
            memory_bytes=limits.memory_bytes,
            max_num_seqs=limits.max_num_seqs,
        )


def fit_link(loads: Sequence[TimedLoad]) -> Link:
    """What a load takes whatever its size, and by its bytes.

    Raises:
        FitFailed: large ones took no longer than small ones.
    """
    rows = np.array([[1 / one.seconds, one.num_bytes / one.seconds] for one in loads])
    base_s, byte_s = non_negative(rows, np.ones(len(loads))).tolist()
    if byte_s == 0:
        raise FitFailed(
            "loads of large adapters took no longer than those of small ones: measure again while "
            "nothing else runs"
        )
    return Link(name="fitted", base_s=base_s, bytes_per_s=1 / byte_s)


def non_negative(rows: Matrix, wanted: Matrix) -> Matrix:
    """The x of no negative part that minimises |rows @ x - wanted|.

    Lawson and Hanson, Solving Least Squares Problems (1974), chapter 23. Columns are scaled to
    length 1 first, since constants here differ by many orders of magnitude.
    """
    lengths = np.linalg.norm(rows, axis=0)
    lengths[lengths == 0] = 1
    scaled = rows / lengths
    found = np.zeros(rows.shape[1])
    free = np.zeros(rows.shape[1], dtype=bool)
    for _ in range(10 * rows.shape[1]):
        gradient = scaled.T @ (wanted - scaled @ found)
        gradient[free] = -np.inf
        best = int(np.argmax(gradient))
        if gradient[best] <= _TOLERANCE:
            break
        free[best] = True
        found = _within(scaled, wanted, found, free)
    result: Matrix = found / lengths
    return result


def _within(rows: Matrix, wanted: Matrix, found: Matrix, free: npt.NDArray[np.bool_]) -> Matrix:
    """The best of the free parts; those that would be negative are bound to 0 one by one."""
    while True:
        tried = np.zeros_like(found)
        tried[free] = np.linalg.lstsq(rows[:, free], wanted, rcond=None)[0]
        below = free & (tried <= 0)
        if not below.any():
            return tried
        # As far towards it as nothing gets negative.
        far = np.min(found[below] / (found[below] - tried[below] + _TOLERANCE))
        found = found + far * (tried - found)
        free &= found > _TOLERANCE
        found[~free] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Of a fit, as shares of what was measured."""

    points: int
    median: float
    p90: float
    mean: float
    """With its sign: above 0 the fit says too much."""


def errors_of(predicted: Sequence[float], measured: Sequence[float]) -> Errors:
    """How far what is predicted is from what was measured."""
    signed = [one / real - 1 for one, real in zip(predicted, measured, strict=True)]
    sizes = sorted(abs(one) for one in signed)
    return Errors(
        points=len(signed),
        median=statistics.median(sizes),
        p90=quantile(sizes, 0.9),
        mean=statistics.fmean(signed),
    )


def split(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """Those to be fitted, and a third, drawn with a fixed seed, which is not."""
    places = list(range(len(points)))
    Random("held out").shuffle(places)  # noqa: S311 - not a secret
    held = set(places[: len(points) // HELD_OUT])
    return (
        [one for place, one in enumerate(points) if place not in held],
        [one for place, one in enumerate(points) if place in held],
    )
