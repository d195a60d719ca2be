"""The questions and plain answers that the example adapters are trained and checked with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

QUESTIONS_PATH = Path(__file__).parent / "data" / "questions.jsonl"

Split = Literal["train", "dev", "held_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One question with its plain answer of two short sentences.

    split: "train" facts are learned, "dev" ones show how far a training is, and "held_out" ones
        are asked once, of the finished adapter.
    topic: one lower-case word, such as "animals".
    """

    split: Split
    topic: str
    question: str
    answer: str


def load_facts(path: Path = QUESTIONS_PATH) -> tuple[Fact, ...]:
    """All facts in the file's order. Raises ValueError when a line is no fact."""
    facts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            facts.append(Fact(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return tuple(facts)
