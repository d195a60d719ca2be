"""What distinguishes one simulated engine from another."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What distinguishes one engine from another."""

    is_chunked: bool = False
    """Prompt chunks ride with decodes; else a new batch's prompts are a step of their own."""
    is_blocking: bool = True
    """A step waits for the adapters of the sequences that it starts; else they wait alone."""
    admit_every: int = 1
    """Decode steps between two admissions; S-LoRA has 10."""
    keeps_adapters: bool = True
    """Else an adapter goes as soon as nothing that runs needs it."""
    looks_ahead: bool = False
    """Loads for the next batch at the 5th and 7th decode step, as S-LoRA's --prefetch does; where
    admissions are every step, at each."""
    max_loads: int = 2
    """Loads under way at once where they do not block; one that waits can still be overtaken."""
    max_batch_tokens: int = 10_000
    """Prompt tokens started at once."""
    bypass_s: float = 2.0
    """How long others may pass a sequence for whose adapter there is no room."""
