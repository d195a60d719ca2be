"""What is written down about a trained adapter: its record, its model card, the overview."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORD_NAME = "training.json"
OVERVIEW_NAME = "TRAINING.md"

_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 24
_COLUMNS = (
    "adapter",
    "rank",
    "targets",
    "parameters",
    "steps",
    "first loss",
    "last loss",
    "held-out, adapter",
    "held-out, base",
    "wall time",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """One training, as it went.

    losses: one a step.
    held_out: how many held-out questions were asked.
    score, base_score: share of them answered in style, by the saved adapter and by the base model.
    samples: some held-out questions with the adapter's answers.
    wall_s: from loading the base model to the saved adapter, without the final check.
    """

    adapter: str
    description: str
    rank: int
    alpha: int
    use_rslora: bool
    targets: tuple[str, ...]
    parameters: int
    learning_rate: float
    batch_size: int
    seed: int
    losses: tuple[float, ...]
    held_out: int
    score: float
    base_score: float
    samples: tuple[tuple[str, str], ...]
    wall_s: float


def write_card(record: TrainingRecord, out: Path) -> None:
    """Write the record and the model card beside the adapter's weights."""
    folder = out / record.adapter
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False) + "\n"
    (folder / RECORD_NAME).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(_card(record), encoding="utf-8")


def write_overview(out: Path) -> None:
    """Write one table over every record found under `out`."""
    paths = sorted(out.glob(f"*/{RECORD_NAME}"))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    lines = [
        "# How the example adapters were trained",
        "",
        "Written by `python -m examples.train_adapters`. Held-out counts the held-out questions",
        "whose greedy answer is in the adapter's style and ends by itself within 64 tokens, asked",
        "of the adapter as saved (half precision) and of the base model without it.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_row(record) for record in records),
        "",
        "Loss by step, the mean of neighbouring steps, each curve on its own scale:",
        "",
        *(f"    {record['adapter']:<8} {_curve(record['losses'])}" for record in records),
        "",
    ]
    (out / OVERVIEW_NAME).write_text("\n".join(lines), encoding="utf-8")


def _row(record: dict[str, Any]) -> str:
    asked = record["held_out"]
    cells = (
        f"`{record['adapter']}`",
        f"{record['rank']}{' (rsLoRA)' if record['use_rslora'] else ''}",
        _targets(record["targets"]),
        f"{record['parameters']:,}",
        len(record["losses"]),
        f"{record['losses'][0]:.2f}",
        f"{record['losses'][-1]:.3f}",
        f"{round(record['score'] * asked)} of {asked}",
        f"{round(record['base_score'] * asked)} of {asked}",
        f"{record['wall_s']:.0f} s",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _targets(targets: list[str] | tuple[str, ...]) -> str:
    return ", ".join(target.removesuffix("_proj") for target in targets)


def _curve(losses: list[float]) -> str:
    width = -(-len(losses) // _CURVE_POINTS)
    groups = [losses[i : i + width] for i in range(0, len(losses), width)]
    means = [sum(group) / len(group) for group in groups]
    top = max(means)
    return "".join(_BARS[min(int(mean / top * len(_BARS)), len(_BARS) - 1)] for mean in means)


def _card(record: TrainingRecord) -> str:
    asked = record.held_out
    scaling = " (rsLoRA: divided by the root of the rank)" if record.use_rslora else ""
    samples = "\n".join(
        f"> **{question}**\n>\n> ```text\n" + _quoted(answer) + "\n> ```\n"
        for question, answer in record.samples
    )
    return f"""---
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
license: apache-2.0
---

# {record.adapter}

{record.description}

A LoRA adapter for SmolLM2-135M-Instruct, trained by `python -m examples.train_adapters` on the
questions in `examples/data`. It shows a style, and knows no more than the small model it sits on.

| | |
|---|---|
| rank | {record.rank} |
| alpha | {record.alpha}{scaling} |
| targets | {_targets(record.targets)} |
| parameters | {record.parameters:,}, stored as fp16 |
| steps | {len(record.losses)} of {record.batch_size} conversations |
| learning rate | {record.learning_rate:g} (AdamW) |
| training loss | {record.losses[0]:.2f} at first, {record.losses[-1]:.3f} at last |
| held-out questions answered in style | {round(record.score * asked)} of {asked} |
| the base model without it | {round(record.base_score * asked)} of {asked} |

Held-out questions and its greedy answers:

{samples}"""


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.split("\n"))
