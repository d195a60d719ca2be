"""Whole systems by name: a policy of the scheduler, and an engine that goes with it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from anole_scheduler.core.knobs import ChargeRule
from anole_sim.options import EngineOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What is compared."""

    name: str
    what: str
    policy: str = "fcfs"
    """Of the scheduler."""
    knobs: Mapping[str, Any] | None = None
    """What of that policy is not as it ships."""
    engine: EngineOptions
    eviction: str = "lru"
    admission: str = "peak"
    """The worker's own: peak (S-LoRA's estimate), or fits (Anole's: what is needed now)."""
    knows_lengths: bool = False
    """Its worker admits by the true output lengths, as S-LoRA's benchmark lets it (each request
    is told to make exactly so many tokens); else by the predictor's."""
    is_forwarding: bool = False
    """The scheduler passes everything on at once; the worker's own line is the queue."""
    admit_ahead: int = 0
    max_prefetch: int = 0
    output_share: float = 1.0
    """Of a predicted output what the scheduler counts as held."""
    max_loads: int = 2
    predictor: str = "perfect"
    pace: str = "fixed"
    """How prompts are cut where the engine cuts them: fixed, or shared (the worker's budget)."""
    longest_s: float = 0.45
    """Of the step budget: what a step may take, three times the promised gap between tokens."""
    alone_share: float = 0.4
    passing: float = 0.0
    """For so many times what a prompt takes others may go first; as a worker on a GPU has it."""
    token_budget: int = 8192
    """A step's most tokens, decodes included."""


_SLORA = System(
    name="slora",
    what="S-LoRA as released: first come, admission every 10 steps, adapters dropped after use",
    engine=EngineOptions(admit_every=10, keeps_adapters=False, looks_ahead=True),
    knows_lengths=True,
    is_forwarding=True,
)


def _cached(name: str, eviction: str, admit_every: int) -> System:
    return replace(
        _SLORA,
        name=name,
        what=f"first come, and a cache in idle memory ({eviction}), admission every "
        + ("step" if admit_every == 1 else f"{admit_every} steps"),
        engine=replace(_SLORA.engine, keeps_adapters=True, admit_every=admit_every),
        eviction=eviction,
    )


_EVICTIONS = {
    "lru": "lru", "fairshare": "fairshare", "gdsf": "gdsf", "chameleon-cache": "chameleon",
}  # fmt: skip
_SYSTEMS: tuple[System, ...] = (
    _SLORA,
    replace(
        _SLORA,
        name="slora-1",
        what="S-LoRA, but admission at every step",
        engine=replace(_SLORA.engine, admit_every=1),
    ),
    *(
        _cached(f"{name}-{every}", eviction, every)
        for name, eviction in _EVICTIONS.items()
        for every in (10, 1)
    ),
)
_CHAMELEON = System(
    name="chameleon",
    what="Chameleon to the letter: size classes, quotas, bypass, its cache, prefetch, every step",
    policy="chameleon",
    engine=EngineOptions(),
    eviction="chameleon",
    max_prefetch=64,
)
_ANOLE = System(
    name="anole",
    what="Anole: virtual deadlines, resident adapters first, loads beside steps, GDSF, step budget",
    policy="anole",
    engine=EngineOptions(is_chunked=True, is_blocking=False),
    eviction="gdsf",
    admission="fits",
    output_share=0.6,
    max_prefetch=8,
    pace="shared",
)
_SYSTEMS += (
    _CHAMELEON,
    replace(
        _CHAMELEON,
        name="chameleon-10",
        what="the same, with S-LoRA's admission every 10 steps",
        engine=replace(_CHAMELEON.engine, admit_every=10),
    ),
    replace(
        _CHAMELEON,
        name="chameleon-nocache",
        what="Chameleon's scheduler alone: adapters dropped after use",
        engine=replace(_SLORA.engine, admit_every=1),
    ),
    replace(
        _CHAMELEON,
        name="chameleon-nocache-10",
        what="the same, with S-LoRA's admission every 10 steps",
        engine=_SLORA.engine,
    ),
    replace(
        _CHAMELEON,
        name="chameleon-tokens",
        what="Chameleon, but quotas charge tokens only, not each request for a shared adapter",
        knobs={"charge_rule": ChargeRule.TOKENS},
    ),
    replace(
        _CHAMELEON,
        name="sjf",
        what="S-LoRA+SJF: shortest predicted output first, with ageing, adapters dropped",
        policy="sjf",
        engine=replace(_SLORA.engine, admit_every=1),
    ),
    _ANOLE,
    replace(
        _ANOLE,
        name="anole-separate",
        what="Anole's policy on S-LoRA's engine with loads beside steps: prompts apart",
        engine=EngineOptions(is_blocking=False),
    ),
    replace(
        _ANOLE,
        name="anole-2048",
        what="Anole's policy, a fixed budget of 2048 tokens a step",
        pace="fixed",
    ),
    replace(
        _ANOLE,
        name="bound",
        what="a reference: Anole's engine, shortest predicted output first, for a free link",
        policy="sjf",
        knobs={"ageing_tokens_per_s": 0.0},
    ),
    replace(
        _ANOLE,
        name="anole-fcfs",
        what="Anole's engine behind first come, first served",
        policy="fcfs",
    ),
)
SYSTEMS = {system.name: system for system in _SYSTEMS}
"""By name. NAME-10 and NAME-1 differ in how many decode steps lie between admissions."""
