"""`anole sim --paper`: each figure of Chameleon's beside what the simulator finds, and Anole's.

Every section makes one table. Medians of several seeds; no baseline is given less than it has in
its own paper: S-LoRA admits by the true output lengths, and is shown with its own admission cadence
and with admission at every step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

from anole_sim.metrics import Summary
from anole_sim.profile import A40_7B, FIT, PCIE, PCIE5, PROFILES, SLOW, Link, Profile
from anole_sim.report import Cell, Table, median
from anole_sim.simulate import Case, simulate
from anole_sim.systems import SYSTEMS, System
from anole_sim.throughput import highest_rate, keeps_both, keeps_ttft
from anole_sim.workload import Plan

FREE = Link(name="free", base_s=0.0, bytes_per_s=1e15)


@dataclass(frozen=True, kw_only=True)
class FreePrompts(Profile):
    """As if prompts cost streams nothing: what no scheduler can better for the time per token."""

    @classmethod
    def of(cls, profile: Profile) -> "FreePrompts":
        return cls(**{field.name: getattr(profile, field.name) for field in fields(profile)})

    def mixed_s(self, *, num_rows: int, context: int, ranks: int, **_: int) -> float:
        return self.decode_s(num_rows, context, ranks) if num_rows else self.host_s


_LINKS = (PCIE, SLOW, FIT)
_PAPER = {6.0: (-14.7, -13.9), 8.0: (-24.6, -20.9), 9.0: (-80.7, -48.1)}
"""Change of the TTFT's P99 and P50 against S-LoRA in per cent, by requests a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Where traces are, and how much is run."""

    folder: Path | None
    seeds: int = 3
    duration_s: float = 600.0
    tell: Callable[[str], None] = print

    def plan(self, **more: object) -> Plan:
        """W1: Azure's conversations, lengths by 6, as in the paper's set-up."""
        base = Plan(folder=self.folder, scale=1 / 6, duration_s=self.duration_s)
        return replace(base, **more)  # type: ignore[arg-type]

    def found(
        self, system: System | str, plan: Plan, link: Link, profile: Profile = A40_7B
    ) -> Summary:
        """The median over the seeds."""
        chosen = SYSTEMS[system] if isinstance(system, str) else system
        case = Case(system=chosen, plan=plan, profile=profile, link=link)
        seeds = (replace(case, plan=replace(plan, seed=seed)) for seed in range(self.seeds))
        summary = median([simulate(one) for one in seeds])
        self.tell(f"  {chosen.name} {plan.trace} {plan.rate:g}/s {link.name}")
        return summary


def change(new: float, old: float) -> float:
    """In per cent."""
    return 100 * (new / old - 1) if old else 0.0


def loads(study: Study) -> Table:
    """P99 and P50 TTFT at low, medium and high load, against S-LoRA."""
    rows: list[tuple[Cell, ...]] = []
    pairs = (
        ("both every 10 steps", "slora", "chameleon-10"),
        ("both every step", "slora-1", "chameleon"),
        ("each its own", "slora", "chameleon"),
        ("each its own", "slora", "anole"),
    )
    for link in _LINKS:
        for rate, (p99, p50) in _PAPER.items():
            plan = study.plan(rate=rate)
            names = dict.fromkeys(name for _, *two in pairs for name in two)
            found = {name: study.found(name, plan, link) for name in names}
            for cadence, old, new in pairs:
                rows.append(
                    (
                        f"{link.name}, {rate:g}/s", cadence, new, found[old].ttft_p99,
                        found[new].ttft_p99, change(found[new].ttft_p99, found[old].ttft_p99),
                        p99, change(found[new].ttft_p50, found[old].ttft_p50),
                        p50, change(found[new].tpot_p99, found[old].tpot_p99),
                    )
                )  # fmt: skip
    return Table(
        name="loads",
        title="TTFT against S-LoRA (W1: Azure conv, lengths by 6, 100 adapters)",
        columns=(
            "link, load", "admission", "system", "S-LoRA P99 s", "P99 s", "P99 %", "paper %",
            "P50 %", "paper %", "TPOT P99 %",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def throughput(study: Study) -> Table:
    """The highest load at the SLOs."""
    rows: list[tuple[Cell, ...]] = []
    what = {
        "slora": 1.0, "chameleon-cache-10": 1.2, "chameleon-nocache-10": 1.05,
        "chameleon-10": 1.5, "slora-1": None, "chameleon": None, "anole": None,
    }  # fmt: skip
    for link in _LINKS:
        base = 0.0
        for name, paper in what.items():
            case = Case(
                system=SYSTEMS[name], plan=study.plan(duration_s=300.0), profile=A40_7B, link=link
            )
            one = highest_rate(case, keeps_ttft, low=2.0, high=18.0)
            both = highest_rate(case, keeps_both, low=2.0, high=18.0)
            base = base or one
            rows.append((link.name, name, one, one / base, paper, both))
            study.tell(f"  throughput {name} {link.name}: {one:.2f}, {both:.2f}")
    return Table(
        name="throughput",
        title="Requests a second at the SLO (W1)",
        columns=("link", "system", "P99 TTFT <= SLO", "x S-LoRA", "paper x", "and P99 TPOT"),
        rows=tuple(rows),
        note="SLO: five mean executions of a request alone, its load included; TPOT 150 ms. "
        "The paper: 8.6 to 12.9 requests a second. Halving to 0.25 requests a second, one seed.",
    )


def evictions(study: Study) -> Table:
    """Which adapter goes."""
    rows: list[tuple[Cell, ...]] = []
    paper = {"lru-10": -18.0, "fairshare-10": -22.0, "chameleon-cache-10": -26.0, "gdsf-10": None}
    settings: Mapping[str, tuple[Plan, Link]] = {
        "100 adapters, fit": (study.plan(rate=8.0), FIT),
        "500 adapters, slow": (study.plan(rate=8.0, num_adapters=500), SLOW),
    }
    if study.folder is not None:
        real = study.plan(rate=10.0, popularity="gentd26")
        settings = {**settings, "GenTD26 order, 875 adapters, slow, 10/s": (real, SLOW)}
    for title, (plan, link) in settings.items():
        base = study.found("slora", plan, link)
        for name, percent in paper.items():
            found = study.found(name, plan, link)
            rows.append(
                (
                    title, name, found.ttft_p99, change(found.ttft_p99, base.ttft_p99), percent,
                    found.hit_rate, found.link_bytes_per_s / 1e6,
                )
            )  # fmt: skip
    return Table(
        name="evictions",
        title="Eviction policies under first come, first served, at 8 requests a second",
        columns=("setting", "system", "P99 s", "vs S-LoRA %", "paper %", "hit", "MB/s"),
        rows=tuple(rows),
    )


def adapters(study: Study) -> Table:
    """More and more adapters."""
    rows: list[tuple[Cell, ...]] = []
    for count in (10, 50, 100, 150, 200, 500):
        plan = study.plan(rate=9.5, num_adapters=count)
        found = [study.found(name, plan, FIT) for name in ("slora", "chameleon-10", "anole")]
        rows.append((count, *(one.ttft_p99 for one in found), found[0].ttft_slo))
    return Table(
        name="adapters",
        title="P99 TTFT by the number of adapters, 9.5 requests a second, link fit",
        columns=("adapters", "slora", "chameleon-10", "anole", "SLO"),
        rows=tuple(rows),
        note="Paper: Chameleon keeps its SLO up to 100 adapters, S-LoRA only with 10.",
    )


def predictors(study: Study) -> Table:
    """How much a wrong guess costs."""
    rows: list[tuple[Cell, ...]] = []
    settings = {
        "W1, 9/s, fit": (study.plan(rate=9.0), FIT),
        "W2, 1.1/s, pcie": (study.plan(rate=1.1, scale=1.0, duration_s=1500.0), PCIE),
    }
    for title, (plan, link) in settings.items():
        for predictor in ("perfect", "100", "80", "60", "paper", "online", "none"):
            both = [
                study.found(replace(SYSTEMS[name], predictor=predictor), plan, link)
                for name in ("chameleon", "anole")
            ]
            figures = [x for one in both for x in (one.ttft_p99, one.longest_wait, one.preemptions)]
            rows.append((title, predictor, *figures))
    return Table(
        name="predictors",
        title="Output-length predictors (60, 80, 100: per cent right of five classes)",
        columns=(
            "setting", "predictor", "chameleon P99", "longest wait", "preempted", "anole P99",
            "longest wait", "preempted",
        ),
        rows=tuple(rows),
        note="Paper: 80 % is about as good as 100 %; 60 % hurts in bursts only.",
    )  # fmt: skip


def popularity(study: Study) -> Table:
    """Which adapters are asked for."""
    kinds = ["uniform", "u-p", "p-p"]
    kinds += [] if study.folder is None else ["gentd26-shuffled", "gentd26"]
    rows: list[tuple[Cell, ...]] = []
    for kind in kinds:
        plan = study.plan(rate=12.0, num_adapters=500, popularity=kind)
        for name in ("chameleon-10", "chameleon", "anole"):
            found = study.found(name, plan, SLOW)
            rows.append(
                (
                    kind, name, found.ttft_p50, found.ttft_p99, found.tpot_p99, found.hit_rate,
                    found.link_bytes_per_s / 1e6, found.longest_wait,
                )
            )  # fmt: skip
    return Table(
        name="popularity",
        title="Popularity: 500 adapters (GenTD26: 874), 12 requests a second, link slow",
        columns=(
            "popularity", "system", "TTFT P50", "TTFT P99", "TPOT P99", "hit", "MB/s",
            "longest wait",
        ),
        rows=tuple(rows),
    )  # fmt: skip


_COMPARED = (
    "setting", "req/s", "chameleon P99", "anole P99", "TTFT P99 %", "TTFT P50 %", "TPOT P99 %",
    "TPOT floor %", "E2E mean %", "chameleon wait", "anole wait", "bound P99",
)  # fmt: skip
_BOUND_NOTE = (
    "TPOT floor: Anole's TPOT P99 against Chameleon's if prompts took no time at all. wait: the "
    "longest time to a first token. bound: adapters without bytes and loads, and a scheduler that "
    "knows all lengths and serves the shortest first; it starves the long, so it is a reference "
    "for the rest, not a strict bound."
)


def compared(
    study: Study, title: str, plan: Plan, link: Link, profile: Profile = A40_7B
) -> tuple[Cell, ...]:
    """Anole against Chameleon and against what clairvoyance could do."""
    old = study.found("chameleon", plan, link, profile)
    new = study.found("anole", plan, link, profile)
    best = study.found("bound", plan, FREE, replace(profile, rank_bytes=0))
    floor = study.found("anole", plan, link, FreePrompts.of(profile))
    return (
        title, plan.rate, old.ttft_p99, new.ttft_p99, change(new.ttft_p99, old.ttft_p99),
        change(new.ttft_p50, old.ttft_p50), change(new.tpot_p99, old.tpot_p99),
        change(floor.tpot_p99, old.tpot_p99), change(new.e2e_mean, old.e2e_mean), old.longest_wait,
        new.longest_wait, best.ttft_p99,
    )  # fmt: skip


def _comparison(name: str, title: str, rows: Sequence[tuple[Cell, ...]]) -> Table:
    return Table(name=name, title=title, columns=_COMPARED, rows=tuple(rows), note=_BOUND_NOTE)


def scarce(study: Study) -> Table:
    """Where memory, link or adapters are scarce."""
    small = A40_7B.with_slots(20_000)
    rows = [
        compared(study, "500 adapters, slow", study.plan(rate=rate, num_adapters=500), SLOW)
        for rate in (10.0, 12.0)
    ]
    rows += [
        compared(study, f"20,000 slots, {link.name}", study.plan(rate=rate), link, small)
        for link, rate in ((PCIE, 8.0), (PCIE, 10.0), (SLOW, 8.0), (SLOW, 10.0))
    ]
    if study.folder is not None:
        rows += [
            compared(study, f"{kind}, slow", study.plan(rate=12.0, popularity=kind), SLOW)
            for kind in ("gentd26", "gentd26-shuffled")
        ]
    return _comparison(
        "scarce", "Anole against Chameleon where memory, link or adapters are scarce (W1)", rows
    )


_TRACES: Mapping[str, tuple[float, float, float]] = {
    # scale of lengths, rates between which its saturation is searched
    "azure-conv": (1.0, 0.4, 2.4),
    "lmsys": (1.0, 2.0, 10.0),
    "sharegpt": (0.5, 0.1, 2.0),
    "arxiv": (0.5, 0.1, 3.0),
    "creation": (1.0, 0.2, 2.5),
    "mooncake": (0.125, 0.1, 2.5),
}
_LOADS = (0.5, 0.8, 1.0)


def _parts(study: Study, title: str, case: Case, top: float) -> list[tuple[Cell, ...]]:
    """The case at parts of the load that Chameleon bears."""
    plans = [replace(case.plan, rate=part * top) for part in _LOADS]
    return [compared(study, title, plan, case.link, case.profile) for plan in plans]


def beat(study: Study) -> Table:
    """Every trace at several parts of the load that Chameleon bears at the SLO."""
    rows: list[tuple[Cell, ...]] = []
    for rate in (6.0, 9.0, 12.0):
        rows += [
            compared(study, f"W1, {link.name}", study.plan(rate=rate), link) for link in _LINKS
        ]
    for trace, (scale, low, high) in _TRACES.items():
        plan = study.plan(trace=trace, scale=scale, duration_s=2 * study.duration_s)
        case = Case(system=SYSTEMS["chameleon"], plan=plan, profile=A40_7B, link=PCIE)
        top = highest_rate(case, keeps_ttft, low=low, high=high, steps=5)
        rows += _parts(study, f"{trace} x{scale:g}, pcie", case, top)
    return _comparison(
        "beat",
        "Anole against Chameleon on every trace, to the load that Chameleon bears at its SLO",
        rows,
    )


def untouched(study: Study) -> Table:
    """Where no constant of ours was ever looked at: bursts, many adapters, another machine."""
    bursty = study.plan(cv=4.0)
    rows = [
        compared(study, "W1 in bursts (cv 4), pcie", replace(bursty, rate=rate), PCIE)
        for rate in (4.0, 6.0, 8.0)
    ]
    zipf = study.plan(num_adapters=1000, popularity="zipf")
    rows += [
        compared(study, "1,000 adapters, Zipf, slow", replace(zipf, rate=rate), SLOW)
        for rate in (6.0, 9.0)
    ]
    plan = study.plan(scale=1.0, seed=17)
    profile = PROFILES["h100-8b"]
    case = Case(system=SYSTEMS["chameleon"], plan=plan, profile=profile, link=PCIE5)
    top = highest_rate(case, keeps_ttft, low=2.0, high=40.0)
    rows += _parts(study, "azure-conv x1, h100-8b, pcie5", case, top)
    return _comparison("untouched", "Anole against Chameleon where no constant was chosen", rows)


def borne(study: Study) -> Table:
    """The highest load at the SLOs, on every trace."""
    rows: list[tuple[Cell, ...]] = []
    for trace, (scale, low, high) in _TRACES.items():
        plan = study.plan(trace=trace, scale=scale, duration_s=2 * study.duration_s)
        found: list[float] = []
        for keeps in (keeps_ttft, keeps_both):
            for name in ("chameleon", "anole"):
                case = Case(system=SYSTEMS[name], plan=plan, profile=A40_7B, link=PCIE)
                found.append(highest_rate(case, keeps, low=low, high=high, steps=5))
        study.tell(f"  borne {trace}: {found}")
        rows.append((f"{trace} x{scale:g}", *found, found[1] / found[0], found[3] / found[2]))
    return Table(
        name="borne",
        title="Requests a second at the SLO, on every trace (link pcie)",
        columns=(
            "trace", "TTFT: chameleon", "anole", "TTFT and TPOT: chameleon", "anole", "x TTFT",
            "x both",
        ),
        rows=tuple(rows),
    )  # fmt: skip


SECTIONS: Mapping[str, Callable[[Study], Table]] = {
    section.__name__: section
    for section in (
        loads, throughput, evictions, adapters, predictors, popularity, scarce, beat, untouched,
        borne,
    )
}  # fmt: skip


def run(study: Study, names: Sequence[str] = (), jobs: int = 1) -> Iterator[Table]:
    """The tables, one after the other; jobs: processes that make them, beside this one if > 1."""
    asked = [(study, name) for name in names or SECTIONS]
    if jobs == 1:
        yield from map(_section, asked)
        return
    with ProcessPoolExecutor(jobs) as processes:
        yield from processes.map(_section, asked)


def _section(asked: tuple[Study, str]) -> Table:
    study, name = asked
    study.tell(name)
    return SECTIONS[name](study)
