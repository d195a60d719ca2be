"""Rows that draw a token, and a small tokenizer with which grammars can be followed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from anole_shared.ids import RequestId
from anole_worker.core.step import History, Row, Sampling
from anole_worker.model_shape import ModelShape
from anole_worker.runtime.grammar import Grammars

END_OF_TEXT, TURN_BEGIN, TURN_END = 0, 1, 2
EOS = (TURN_END, END_OF_TEXT)
VOCAB_SIZE = 412
"""Of the model, not divisible by eight; the tokenizer has fewer tokens."""

_CORPUS = [
    '{"name": "Ada", "age": 36, "tags": ["one", "two"], "is_new": true}',
    '{"name":"Grace","age":85,"tags":[],"is_new":false,"note":null}',
    "yes or no, this and that",
] * 4


def make_tokenizer(folder: Path) -> Path:
    """A folder with a byte-level tokenizer, with leftovers of training as some models' have."""
    folder.mkdir(exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    assert 300 < tokenizer.get_vocab_size() <= 400
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def read_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def shape(vocab_size: int = VOCAB_SIZE) -> ModelShape:
    return ModelShape(
        family="llama",
        num_layers=1,
        hidden_size=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=8,
        vocab_size=vocab_size,
        max_model_len=1000,
        eos_token_ids=EOS,
    )


def no_grammars() -> Grammars:
    """For rows without one: there is no tokenizer."""
    return Grammars(Path("nowhere"), shape(), max_held=1)


def schema_grammar(schema: dict[str, Any]) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


def drawing(
    sampling: Sampling,
    *,
    name: str = "r",
    prompt: Sequence[int] = (TURN_BEGIN,),
    output: Sequence[int] = (),
    banned: Sequence[int] = (),
) -> Row:
    """The row that draws the token behind the output."""
    tokens = (*prompt, *output)
    return Row(
        request_id=RequestId(name),
        adapter=None,
        token_ids=tokens[-1:],
        start=len(tokens) - 1,
        block_table=(),
        sampling=sampling,
        history=History(token_ids=tokens, num_prompt_tokens=len(prompt)),
        banned_token_ids=tuple(banned),
    )
