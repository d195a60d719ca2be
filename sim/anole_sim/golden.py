"""The golden check: S-LoRA's own published runs on an A10G, and what the simulator says of them.

The runs are those of S-LoRA's repository (benchmarks/paper/synthetic/slora): lengths uniform in 8
to 512, Poisson arrivals for 300 s, every adapter equally popular. The profile's few constants for
the host and for LoRA were fitted to the first table, so that is no blind test; the second (fewer
adapters at 2 requests a second) was not fitted.
"""

from dataclasses import dataclass
from random import Random

from anole_sim.profile import A10G_7B, PCIE
from anole_sim.simulate import Case, run
from anole_sim.systems import SYSTEMS
from anole_sim.workload import Ask, Plan, Workload

_S1, _S2 = (8,), (64, 32, 16, 8)
_DURATION_S = 300.0
_SHORTEST, _LONGEST = 8, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """One published run: requests a second, mean seconds to the end and to the first token."""

    name: str
    ranks: tuple[int, ...]
    rate: float
    throughput: float
    e2e: float | None = None
    ttft: float | None = None
    num_adapters: int = 200


PUBLISHED = (
    Golden(name="S1", ranks=_S1, rate=1.0, throughput=0.963, e2e=11.6, ttft=0.30),
    Golden(name="S1", ranks=_S1, rate=1.5, throughput=1.371, e2e=13.7, ttft=0.40),
    Golden(name="S1", ranks=_S1, rate=2.0, throughput=1.769, e2e=21.8, ttft=6.9),
    Golden(name="S1", ranks=_S1, rate=2.5, throughput=1.795, e2e=69.5, ttft=53.9),
    Golden(name="S2", ranks=_S2, rate=1.0, throughput=0.961, e2e=12.5, ttft=0.34),
    Golden(name="S2", ranks=_S2, rate=1.5, throughput=1.360, e2e=16.1, ttft=1.38),
    Golden(name="S2", ranks=_S2, rate=2.0, throughput=1.545, e2e=42.6, ttft=27.1),
    Golden(name="S2", ranks=_S2, rate=2.5, throughput=1.500, e2e=108.7, ttft=92.9),
    *(
        Golden(name="S2", ranks=_S2, rate=2.0, throughput=throughput, num_adapters=count)
        for count, throughput in ((1, 1.683), (20, 1.652), (50, 1.576), (100, 1.559))
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A published run, and the simulated one: the mean of several seeds."""

    golden: Golden
    throughput: float
    e2e: float
    ttft: float


def check(golden: Golden, seeds: int = 3) -> Check:
    """Simulate one published run."""
    case = Case(system=SYSTEMS["slora"], plan=Plan(), profile=A10G_7B, link=PCIE)
    found = [run(case, _workload(golden, seed), warm_up=0.0)[1] for seed in range(seeds)]
    return Check(
        golden=golden,
        throughput=sum(one.throughput for one in found) / seeds,
        e2e=sum(one.e2e_mean for one in found) / seeds,
        ttft=sum(one.ttft_mean for one in found) / seeds,
    )


def _workload(golden: Golden, seed: int) -> Workload:
    random = Random(f"golden {seed}")
    asks: list[Ask] = []
    now = random.expovariate(golden.rate)
    while now < _DURATION_S:
        lengths = [random.randrange(_SHORTEST, _LONGEST) for _ in range(2)]
        asks.append(Ask(now, lengths[0], lengths[1], random.randrange(golden.num_adapters)))
        now += random.expovariate(golden.rate)
    ranks = [golden.ranks[place % len(golden.ranks)] for place in range(golden.num_adapters)]
    return Workload(name="S-LoRA synthetic", asks=asks, ranks=ranks, duration_s=_DURATION_S)
