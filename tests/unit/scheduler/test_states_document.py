"""docs/states.md shows the transition tables as they are.

Write it anew with `python -m tests.unit.scheduler.test_states_document`.
"""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from anole_scheduler.core import request as scheduler_request
from anole_scheduler.core import residency as scheduler_residency
from anole_worker.core import residency as worker_residency
from anole_worker.core import sequence as worker_sequence

DOCUMENT = Path(__file__).parents[3] / "docs" / "states.md"

INTRODUCTION = """# States

Made from the transition tables in the code; a test fails while they differ. To write it anew:

    .venv/bin/python -m tests.unit.scheduler.test_states_document
"""

MACHINES: tuple[tuple[str, str, Enum, Mapping[Any, frozenset[Any]]], ...] = (
    (
        "A request, as the scheduler sees it",
        (
            "`anole_scheduler.core.request`: one attempt at a request. It leaves WAITING for "
            "FINISHED where a worker ran it under an earlier scheduler."
        ),
        scheduler_request.RequestState.WAITING,
        scheduler_request.TRANSITIONS,
    ),
    (
        "An adapter on a worker, as the scheduler sees it",
        (
            "`anole_scheduler.core.residency`: a belief. It goes from ABSENT to RESIDENT where a "
            "report is the first that tells of the adapter."
        ),
        scheduler_residency.Residency.ABSENT,
        scheduler_residency.TRANSITIONS,
    ),
    (
        "A sequence on its worker",
        "`anole_worker.core.sequence`.",
        worker_sequence.Phase.WAITING,
        worker_sequence.TRANSITIONS,
    ),
    (
        "An adapter on its worker",
        "`anole_worker.core.residency`: the ledger of adapter memory.",
        worker_residency.Residency.ABSENT,
        worker_residency.TRANSITIONS,
    ),
)


def render() -> str:
    """The whole document."""
    sections = [INTRODUCTION]
    for title, text, start, table in MACHINES:
        arrows = [f"    [*] --> {start.name}"]
        for before, afters in table.items():
            arrows += [
                f"    {before.name} --> {after.name}" for after in type(before) if after in afters
            ]
            if not afters:
                arrows.append(f"    {before.name} --> [*]")
        diagram = "\n".join(["```mermaid", "stateDiagram-v2", *arrows, "```"])
        sections.append(f"## {title}\n\n{text}\n\n{diagram}\n")
    return "\n".join(sections)


def test_the_document_shows_the_tables_as_they_are() -> None:
    assert DOCUMENT.read_text() == render(), f"stale: {(__doc__ or '').splitlines()[2]}"


def test_every_state_of_every_machine_is_in_its_table() -> None:
    for _, _, start, table in MACHINES:
        assert set(table) == set(type(start))


if __name__ == "__main__":
    DOCUMENT.write_text(render())
