"""What is asked of the cluster: when, how long, with which adapter. All of it from one seed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from random import Random

from anole_shared.errors import ConfigurationError
from anole_shared.ids import AdapterId
from anole_sim import traces

RANKS = (8, 16, 32, 64, 128)
"""As in Chameleon: a fifth of the adapters each."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    adapter: int
    """Index into the population; -1 is the base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests in order of arrival, and the adapters that they name."""

    name: str
    asks: Sequence[Ask]
    ranks: Sequence[int]
    """Of each adapter."""
    duration_s: float


@dataclass(frozen=True, slots=True)
class Synthetic:
    """Lengths drawn from two lognormals, for where no trace is at hand."""

    input_p50: float
    input_p90: float
    output_p50: float
    output_p90: float
    longest: int

    def draw(self, random: Random) -> tuple[int, int]:
        """An input and an output length."""
        found = []
        for p50, p90 in ((self.input_p50, self.input_p90), (self.output_p50, self.output_p90)):
            sigma = math.log(p90 / p50) / 1.2816
            found.append(
                min(max(1, round(random.lognormvariate(math.log(p50), sigma))), self.longest)
            )
        return found[0], found[1]


SYNTHETIC = {
    "azure-conv": Synthetic(1020, 2734, 129, 424, 14_050),
    "mooncake": Synthetic(6909, 27_367, 350, 597, 126_195),
    "sharegpt": Synthetic(1730, 5696, 415, 834, 8141),
    "arxiv": Synthetic(2730, 3702, 167, 372, 4056),
    "lmsys": Synthetic(17, 177, 117, 389, 1037),
    "creation": Synthetic(309, 400, 1106, 1708, 3501),
}
"""Fitted to the median and the 90th percentile of each trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a workload is made."""

    trace: str = "azure-conv"
    """A known trace's name, or a file's path."""
    folder: Path | None = None
    """Where the known traces are; None draws their lengths from fitted lognormals."""
    scale: float = 1.0
    """Lengths are multiplied by this."""
    longest: int = 16_384
    """Tokens of a request at most, prompt and output each."""
    rate: float = 6.0
    """Requests a second; 0 keeps the trace's own times."""
    duration_s: float = 600.0
    cv: float = 1.0
    """Coefficient of variation of the gaps between arrivals: 1 is Poisson, more is bursty."""
    num_adapters: int = 100
    ranks: tuple[int, ...] = RANKS
    popularity: str = "u-p"
    """uniform, zipf, u-p (uniform over ranks, power law within a rank), p-p (both), gentd26
    (the order of the production LoRA trace), gentd26-shuffled."""
    exponent: float = 1.0
    """Of the power law."""
    seed: int = 0


def make(plan: Plan) -> Workload:
    """The workload of a plan; the same one for the same plan.

    Raises:
        ConfigurationError: a trace or a word is not known.
    """
    lengths_of = _lengths(plan)
    times = _times(plan)
    count = len(times)
    ranks, draw = population(plan, count)
    scaled = []
    for place, arrival_s in enumerate(times):
        given, made = lengths_of(place)
        scaled.append(Ask(arrival_s, _scale(given, plan), _scale(made, plan), draw(place)))
    return Workload(
        name=plan.trace, asks=scaled, ranks=ranks, duration_s=max(plan.duration_s, times[-1])
    )


def _scale(tokens: int, plan: Plan) -> int:
    return min(max(1, round(tokens * plan.scale)), plan.longest)


def _lengths(plan: Plan) -> Callable[[int], tuple[int, int]]:
    random = Random(f"lengths {plan.seed}")
    if plan.folder is None and plan.trace in SYNTHETIC:
        shape = SYNTHETIC[plan.trace]
        return lambda _: shape.draw(random)
    rows = traces.read(traces.find(plan.trace, plan.folder))
    if plan.rate <= 0:
        return lambda place: (rows[place].input_tokens, rows[place].output_tokens)

    def drawn(_: int) -> tuple[int, int]:
        row = rows[int(random.random() * len(rows))]
        return row.input_tokens, row.output_tokens

    return drawn


def _times(plan: Plan) -> list[float]:
    if plan.rate <= 0:
        rows = traces.read(traces.find(plan.trace, plan.folder))
        return [row.arrival_s for row in rows if row.arrival_s <= plan.duration_s]
    random = Random(f"arrivals {plan.seed}")
    shape = 1 / plan.cv**2
    times: list[float] = []
    now = 0.0
    while True:
        now += random.gammavariate(shape, plan.cv**2 / plan.rate)
        if now > plan.duration_s:
            return times or [0.0]
        times.append(now)


def population(plan: Plan, count: int) -> tuple[list[int], Callable[[int], int]]:
    """The adapters' ranks, and the adapter of the request at each place."""
    random = Random(f"adapters {plan.seed}")
    if plan.num_adapters == 0:
        return [], lambda _: -1
    if plan.popularity.startswith("gentd26"):
        return _production(plan, random)
    ranks = [plan.ranks[place % len(plan.ranks)] for place in range(plan.num_adapters)]
    weights = [_weight(plan, place) for place in range(plan.num_adapters)]
    sums = list(accumulate(weights))
    chosen = random.choices(range(plan.num_adapters), cum_weights=sums, k=count)
    return ranks, chosen.__getitem__


def _weight(plan: Plan, place: int) -> float:
    """Of the adapter at that place: adapters of one rank stand len(ranks) places apart."""
    kind, within = place % len(plan.ranks), place // len(plan.ranks)
    match plan.popularity:
        case "uniform":
            return 1.0
        case "zipf":
            return float((place + 1) ** -plan.exponent)
        case "u-p":
            return float((within + 1) ** -plan.exponent)
        case "p-p":
            return float(((kind + 1) * (within + 1)) ** -plan.exponent)
        case _:
            raise ConfigurationError(
                f"no popularity {plan.popularity!r}: uniform, zipf, u-p, p-p, gentd26 or "
                "gentd26-shuffled"
            )


def _production(plan: Plan, random: Random) -> tuple[list[int], Callable[[int], int]]:
    """The production trace's adapters in its order, again and again; ranks are dealt at random."""
    names = traces.read_adapters(traces.find("gentd26", plan.folder))
    number = {name: place for place, name in enumerate(dict.fromkeys(names))}
    order = [number[name] for name in names]
    if plan.popularity == "gentd26-shuffled":
        random.shuffle(order)
    ranks = [plan.ranks[place % len(plan.ranks)] for place in range(len(number))]
    random.shuffle(ranks)
    begin = random.randrange(len(order))
    return ranks, lambda place: order[(begin + place) % len(order)]


def adapter_name(place: int) -> AdapterId:
    """The id of the adapter at that place."""
    return AdapterId(f"a{place:04d}")
