"""Puts a run together: workload, system, machine; and what came of it."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace

from anole_scheduler.core.knobs import PolicyKnobs
from anole_scheduler.core.limits import Limits
from anole_scheduler.core.memory import Capacity
from anole_scheduler.core.policies.standard import policies
from anole_scheduler.core.predictor import MaxTokensPredictor, OnlinePredictor, Predictor
from anole_scheduler.core.request import Request
from anole_scheduler.core.scheduler import Scheduler
from anole_shared.ids import AdapterId, RequestId, WorkerId
from anole_sim import workload as workloads
from anole_sim.admission import Admission, Fits, PeakEstimate
from anole_sim.cluster import Simulation, total, true_lengths
from anole_sim.engine import Engine
from anole_sim.faults import Faults
from anole_sim.host import Host
from anole_sim.metrics import Summary, summarise
from anole_sim.pace import Fixed, Pace, Shared
from anole_sim.pool import Pool
from anole_sim.predictors import PREDICTORS
from anole_sim.profile import Link, Profile
from anole_sim.systems import System
from anole_sim.workload import Workload, adapter_name
from anole_worker.core.adapter import Adapter
from anole_worker.core.eviction import by_name
from anole_worker.core.residency import AdapterCache
from anole_worker.core.step_budget import StepBudget

WARM_UP = 0.1
"""Share of the run whose requests are not counted."""
_WINDOW_S = 300.0
_BLOCK_TOKENS = 16
_PLENTY = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything that a run depends on."""

    system: System
    plan: workloads.Plan
    profile: Profile
    link: Link
    num_workers: int = 1
    faults: Faults | None = None
    is_checked: bool = False


def simulate(case: Case) -> Summary:
    """Run a case."""
    return run(case, workloads.make(case.plan))[1]


def run(case: Case, work: Workload, warm_up: float = WARM_UP) -> tuple[Simulation, Summary]:
    """Run a workload; what has happened, and its figures."""
    simulation = prepare(case, work)
    # What a run makes lives to its end: looking for garbage meanwhile finds none.
    gc.disable()
    try:
        simulation.run()
    finally:
        gc.enable()
    hosts = [*simulation.hosts.values(), *simulation.gone]
    gaps = [gap for host in hosts for gap in host.engine.decoding.gaps]
    return simulation, summarise(
        simulation.lives(),
        gaps,
        warm_up_s=warm_up * work.duration_s,
        duration_s=work.duration_s,
        starts=simulation.num_asked,
        hits=simulation.num_hits,
        link_bytes=total(hosts, lambda host: host.engine.loads.num_bytes),
        preemptions=total(hosts, lambda host: host.engine.num_preemptions),
    )


def prepare(case: Case, work: Workload) -> Simulation:
    """A run that has not begun."""
    system, profile = case.system, case.profile
    lengths = true_lengths(work)
    predictor = _predictor(system.predictor, lengths, case.plan.seed)
    adapters = _adapters(work, profile)

    def expected(request: Request, left: int) -> int:
        return left if system.knows_lengths else predictor.predict(request)

    def make_host(number: int) -> Host:
        return Host(
            WorkerId(f"worker-{number:03d}"),
            engine=_engine(system, profile, case.link),
            adapters=adapters,
            capacity=_capacity(system, profile),
            link=case.link,
            expected=expected,
        )

    longest = max(ask.output_tokens for ask in work.asks)
    return Simulation(
        work,
        Scheduler(
            _limits(system),
            policies(system.policy, replace(PolicyKnobs(), **(system.knobs or {}))),
            predictor=predictor,
        ),
        make_host,
        num_workers=case.num_workers,
        max_tokens=lambda _: longest,
        faults=case.faults,
        is_checked=case.is_checked,
    )


def _predictor(name: str, lengths: Mapping[RequestId, int], seed: int) -> Predictor:
    """One that is told the lengths, or one of the scheduler's own."""
    if name in PREDICTORS:
        return PREDICTORS[name](lengths, seed)
    return OnlinePredictor() if name == "online" else MaxTokensPredictor()


def _adapters(work: Workload, profile: Profile) -> dict[AdapterId, Adapter]:
    return {
        adapter_name(place): Adapter(
            adapter_id=adapter_name(place),
            generation="1",
            num_bytes=profile.adapter_bytes(rank),
            rank=rank,
        )
        for place, rank in enumerate(work.ranks)
    }


def _engine(system: System, profile: Profile, link: Link) -> Engine:
    cache = AdapterCache(by_name(_WINDOW_S)[system.eviction])
    pool = Pool(num_bytes=profile.memory_bytes, kv_bytes=profile.kv_bytes, cache=cache)
    admission: Admission = PeakEstimate() if system.admission == "peak" else Fits()
    return Engine(
        system.engine, profile, link=link, pool=pool, pace=_pace(system), admission=admission
    )


def _pace(system: System) -> Pace:
    if system.pace == "fixed":
        return Fixed(2048)
    budget = StepBudget(
        longest_s=system.longest_s,
        alone_share=system.alone_share,
        passing=system.passing,
        max_tokens=system.token_budget,
    )
    return Shared(budget, token_budget=system.token_budget)


def _capacity(system: System, profile: Profile) -> Capacity:
    """A worker whose own line is the queue has room for everything, as far as is told."""
    return Capacity(
        max_num_seqs=_PLENTY if system.is_forwarding else profile.max_num_seqs,
        block_size=_BLOCK_TOKENS,
        block_bytes=_BLOCK_TOKENS * profile.kv_bytes,
        memory_bytes=_PLENTY * profile.kv_bytes if system.is_forwarding else profile.memory_bytes,
        max_model_len=_PLENTY,
    )


def _limits(system: System) -> Limits:
    return Limits(
        max_waiting=_PLENTY,
        max_unfinished=_PLENTY,
        admit_ahead=_PLENTY if system.is_forwarding else system.admit_ahead,
        output_share=system.output_share,
        max_prefetch=system.max_prefetch,
        max_loads=system.max_loads,
        no_worker_timeout_s=3600.0,
        worker_timeout_s=10.0,
        lost_after_s=10.0,
        orphan_timeout_s=30.0,
        settle_s=5.0,
        load_timeout_s=60.0,
        max_ended=16_384,
    )
