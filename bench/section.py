"""The parts of the benchmark, and what each of them is told."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anole_shared.errors import ConfigurationError
from bench.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every section is told."""

    model: Path
    """A Hugging Face folder."""
    work: Path
    """For adapters of random weights, which are made once."""
    rounds: int
    """How often each thing is measured, in turns with the others."""
    is_quick: bool
    """For a first look: fewer cases and sizes."""
    device: str = "cpu"
    """What the worker runs on, as its setting has it."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What a section leaves for programs in the results' file, beside its tables."""

    @property
    def is_on_gpu(self) -> bool:
        """Whether work goes on after the call that asked for it, and processor time says little."""
        return self.device.startswith("cuda")


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the benchmark: the module of this name, whose measure() gives its tables."""

    name: str
    what: str

    def measure(self, plan: Plan) -> list[Table]:
        """Import what it needs, and measure.

        Raises:
            ConfigurationError: a package is not installed.
        """
        try:
            module = importlib.import_module(f"bench.{self.name}")
        except ModuleNotFoundError as fault:
            raise ConfigurationError(
                f"{self.name} needs {fault.name}, which is not installed: run `make install-dev`, "
                "or pip install -e '.[bench]'"
            ) from fault
        measure: Callable[[Plan], list[Table]] = module.measure
        return measure(plan)


SECTIONS = {
    section.name: section
    for section in (
        Section("limits", "what one core can do at most: bytes read, bytes copied, FLOP/s"),
        Section("steps", "a decode step with adapters against the base model, and PEFT's"),
        Section("profile", "where the time of a decode step goes"),
        Section("prefill", "prompts with and without adapters, and prompts that share a beginning"),
        Section("loads", "bringing an adapter from disk into memory, against a copy of the bytes"),
        Section("memory", "bytes held for an adapter against its weights; unused bytes"),
        Section("memd_host", "a host's memory under shifting demand: memd's regions or a heap"),
        Section("stalls", "a running stream's longest gap while adapters load"),
        Section("policies", "which eviction policy hits most (simulated, the real ledger)"),
        Section("live", "broker, store and scheduler with workers that answer at once"),
        Section("decisions", "events a second of the scheduler's core with a long line, by policy"),
        Section("fit", "this machine as a profile for anole sim, and how far off that is"),
        Section("overhead", "the whole stack over HTTP against the worker alone"),
    )
}


def progress(line: str) -> None:
    """Say on stderr how far it is; stdout is for the results."""
    print(line, file=sys.stderr, flush=True)
