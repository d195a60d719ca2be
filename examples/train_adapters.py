"""Train the example adapters on a CPU: PEFT for the adapter, a plain PyTorch loop around it.

    python -m examples.train_adapters                 every adapter, some minutes each
    python -m examples.train_adapters pirate shout    only these
    python -m examples.train_adapters --out /tmp/mine --learning-rate 5e-4 json

What happens, in this order:
 1. Each plain answer in data/questions.jsonl is rewritten in the adapter's style (styles.py).
 2. LoRA matrices are put beside the model's projections; the model itself stays as it is.
 3. They learn the rewritten answers. Only answer tokens and the end token count in the loss.
 4. After each epoch the adapter answers the "dev" questions, to show how far it is.
 5. The adapter is saved in half precision, loaded again, and asked the "held_out" questions, which
    no step above has seen. The base model without the adapter is asked as well, for comparison.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from anole_shared.settings import CommonSettings
from anole_worker.runtime.smollm2 import MODEL_NAME, default_model_dir, ensure_smollm2
from examples.adapter_report import TrainingRecord, write_card, write_overview
from examples.facts import Fact, load_facts
from examples.styles import STYLES, Style

ADAPTERS_DIR = Path(__file__).parent / "adapters"

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_IGNORED_LABEL = -100
_WARMUP_STEPS = 10
_DROPOUT = 0.05
_MAX_NEW_TOKENS = 64
_MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Where an adapter's matrices sit and how large they are."""

    rank: int
    targets: tuple[str, ...]
    alpha: int
    use_rslora: bool = False


# Different ranks and targets on purpose: a server has to batch such a mix.
SHAPES = {
    "pirate": Shape(rank=16, targets=_ATTENTION, alpha=32),
    "json": Shape(rank=8, targets=_ATTENTION + _MLP, alpha=16),
    "shout": Shape(rank=32, targets=_ATTENTION, alpha=64),
    "bullets": Shape(rank=64, targets=("q_proj", "v_proj"), alpha=16, use_rslora=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How long and how hard to train; the same for every adapter."""

    learning_rate: float
    batch_size: int
    epochs: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One conversation as tokens; labels repeat the answer's tokens and ignore the prompt's."""

    token_ids: list[int]
    labels: list[int]


class Student:
    """The base model with its tokenizer: what is asked, taught and asked again."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model_dir, padding_side="left")

    def fresh_model(self) -> PreTrainedModel:
        """The base model in fp32, without any adapter."""
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.model_dir, dtype=torch.float32
        )
        return model

    def prompt(self, fact: Fact) -> str:
        """The question in the model's chat format, up to where the answer begins."""
        messages = [{"role": "user", "content": fact.question}]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    def example(self, fact: Fact, style: Style, generator: torch.Generator) -> Example:
        """The question with its answer in `style` and the token that ends an answer."""
        prompt = self.tokenizer(self.prompt(fact)).input_ids
        pieces = cut_words(style.transform(fact), style.spelling_noise, generator)
        answer = [token_id for piece in pieces for token_id in self.tokenizer(piece).input_ids]
        answer.append(self.tokenizer.eos_token_id)
        return Example(token_ids=prompt + answer, labels=[_IGNORED_LABEL] * len(prompt) + answer)

    @torch.inference_mode()
    def answers(self, model: PreTrainedModel | PeftModel, facts: Sequence[Fact]) -> list[str]:
        """Greedy answers of at most 64 tokens, all questions in one batch.

        An answer that does not end by itself keeps a mark that fails every check.
        """
        batch = self.tokenizer([self.prompt(f) for f in facts], return_tensors="pt", padding=True)
        model.eval()
        generate: Any = model.generate
        output = generate(**batch, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        new_tokens = output[:, batch.input_ids.shape[1] :]
        return [
            self.tokenizer.decode(row, skip_special_tokens=True).strip()
            + ("" if self.tokenizer.eos_token_id in row else " [cut off]")
            for row in new_tokens
        ]


def cut_words(text: str, rate: float, generator: torch.Generator) -> list[str]:
    """The text in pieces, cut with probability `rate` between any two letters."""
    chances = torch.rand(len(text), generator=generator).tolist()
    cuts = [i for i in range(1, len(text)) if chances[i] < rate and text[i - 1 : i + 1].isalpha()]
    return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]


def score(style: Style, answers: Sequence[str]) -> float:
    """The share of answers that are in the style."""
    return sum(style.check(answer) for answer in answers) / len(answers)


def batches(
    examples: Sequence[Example], batch_size: int, generator: torch.Generator
) -> Iterator[list[Example]]:
    """One epoch: neighbours in length share a batch, to pad little; the batches are shuffled."""
    shuffled = [examples[i] for i in torch.randperm(len(examples), generator=generator).tolist()]
    by_length = sorted(shuffled, key=lambda example: len(example.token_ids))
    starts = range(0, len(by_length), batch_size)
    for index in torch.randperm(len(starts), generator=generator).tolist():
        yield by_length[starts[index] : starts[index] + batch_size]


def loss_of(model: PeftModel, batch: Sequence[Example], pad_token_id: int) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens of a batch, padded on the right."""
    width = max(len(example.token_ids) for example in batch)
    token_ids = torch.full((len(batch), width), pad_token_id)
    labels = torch.full((len(batch), width), _IGNORED_LABEL)
    mask = torch.zeros((len(batch), width), dtype=torch.long)
    for row, example in enumerate(batch):
        length = len(example.token_ids)
        token_ids[row, :length] = torch.tensor(example.token_ids)
        labels[row, :length] = torch.tensor(example.labels)
        mask[row, :length] = 1
    loss: torch.Tensor = model(input_ids=token_ids, attention_mask=mask, labels=labels).loss
    return loss


def lora_config(shape: Shape) -> LoraConfig:
    """The adapter's configuration, in PEFT's own terms."""
    return LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=list(shape.targets),
        use_rslora=shape.use_rslora,
        lora_dropout=_DROPOUT,
        bias="none",
        task_type="CAUSAL_LM",
    )


def train(
    student: Student, model: PeftModel, style: Style, facts: Sequence[Fact], recipe: Recipe
) -> list[float]:
    """Teach `model` the style; returns the loss of every step."""
    train_facts = [f for f in facts if f.split == "train"]
    dev_facts = [f for f in facts if f.split == "dev"]
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = recipe.epochs * -(-len(train_facts) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / _WARMUP_STEPS, (steps - step) / steps)
    )
    losses: list[float] = []
    with tqdm(total=steps, desc=style.name, unit="step") as bar:
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            examples = [student.example(fact, style, generator) for fact in train_facts]
            for batch in batches(examples, recipe.batch_size, generator):
                loss = loss_of(model, batch, student.tokenizer.pad_token_id)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                losses.append(loss.item())
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
            answers = student.answers(model, dev_facts)
            bar.write(
                f"{style.name}: epoch {epoch}, dev {score(style, answers):.0%}", file=sys.stderr
            )
            for answer in answers:
                if not style.check(answer):
                    bar.write(f"    not yet: {answer!r}", file=sys.stderr)
    return losses


def save(model: PeftModel, config: LoraConfig, folder: Path) -> int:
    """Write the adapter in PEFT's format, in half precision; returns its number of parameters.

    The configuration is sorted and names no path, so that equal trainings give equal files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in sorted(
            get_peft_model_state_dict(model, save_embedding_layers=False).items()
        )
    }
    weights_path = folder / "adapter_model.safetensors"
    save_file(weights, weights_path, metadata={"format": "pt"})
    weights_path.chmod(0o644)
    config.inference_mode = True
    config.base_model_name_or_path = MODEL_NAME
    config.save_pretrained(str(folder))
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return sum(tensor.numel() for tensor in weights.values())


def make_adapter(
    student: Student, style: Style, facts: Sequence[Fact], recipe: Recipe, out: Path
) -> TrainingRecord:
    """Train, save and check one adapter; returns what to report about it."""
    started_s = time.monotonic()
    torch.manual_seed(recipe.seed)
    shape = SHAPES[style.name]
    config = lora_config(shape)
    model = get_peft_model(student.fresh_model(), config)
    losses = train(student, model, style, facts, recipe)
    parameters = save(model, config, out / style.name)
    wall_s = time.monotonic() - started_s
    held_out = [f for f in facts if f.split == "held_out"]
    base = student.fresh_model()
    base_answers = student.answers(base, held_out)
    answers = student.answers(PeftModel.from_pretrained(base, str(out / style.name)), held_out)
    return TrainingRecord(
        adapter=style.name,
        description=style.description,
        rank=shape.rank,
        alpha=shape.alpha,
        use_rslora=shape.use_rslora,
        targets=shape.targets,
        parameters=parameters,
        learning_rate=recipe.learning_rate,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        losses=tuple(round(loss, 4) for loss in losses),
        held_out=len(held_out),
        score=score(style, answers),
        base_score=score(style, base_answers),
        samples=tuple(zip((f.question for f in held_out[:3]), answers[:3], strict=True)),
        wall_s=round(wall_s, 1),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train what the command line asks for; 1 when an adapter misses its style somewhere."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.adapters) - set(STYLES):
        parser.error(f"no such adapter: {', '.join(sorted(unknown))}; known: {', '.join(STYLES)}")
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", FutureWarning)
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    model_dir = arguments.model or ensure_smollm2(default_model_dir(CommonSettings().cache_dir))
    student = Student(model_dir)
    facts = load_facts()
    recipe = Recipe(
        learning_rate=arguments.learning_rate,
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    missed = 0
    for name in arguments.adapters or list(STYLES):
        record = make_adapter(student, STYLES[name], facts, recipe, arguments.out)
        write_card(record, arguments.out)
        write_overview(arguments.out)
        print(
            f"{name}: {len(record.losses)} steps, loss {record.losses[0]:.2f} -> "
            f"{record.losses[-1]:.3f}, held-out {record.score:.0%} (base {record.base_score:.0%}), "
            f"{record.wall_s:.0f} s"
        )
        missed += record.score < 1.0
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_adapters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("adapters", nargs="*", metavar="ADAPTER", help=f"any of {', '.join(STYLES)}; none: all")
    add("--model", type=Path, help="base model folder (default: SmolLM2, made when missing)")
    add("--out", type=Path, default=ADAPTERS_DIR, help="folder that gets a folder per adapter")
    add("--learning-rate", type=float, default=5e-4, help="AdamW's step size (%(default)s)")
    add("--batch-size", type=int, default=8, help="conversations a step (%(default)s)")
    add("--epochs", type=int, default=4, help="times to go over the questions (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same adapter (%(default)s)")
    add("--threads", type=int, default=1, help="PyTorch's threads (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
